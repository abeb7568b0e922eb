"""What a training step costs, measured against plain PyTorch, and proof that both compute the same."""
