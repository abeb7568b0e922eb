"""The one loop, and what it needs to be trusted: checkpoints, tracking, watching."""
