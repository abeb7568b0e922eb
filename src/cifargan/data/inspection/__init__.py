"""What images look like before anything is trained on them."""
