"""What lies on disk about runs: directory, lock, checkpoints, provenance."""
