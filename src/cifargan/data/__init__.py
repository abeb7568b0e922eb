"""Image sets: where images come from, how they are stored, inspected and drawn in batches."""
