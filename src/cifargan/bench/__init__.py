"""Time a training iteration against plain PyTorch, after a check that both compute the same."""
