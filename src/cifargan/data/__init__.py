"""Images in: where they come from, and the stream that feeds the training."""
