"""Searching for good settings: what may vary, and the study that asks and tells Optuna."""
