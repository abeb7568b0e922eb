"""Feature networks: what turns images into the features and logits that scores compare."""
