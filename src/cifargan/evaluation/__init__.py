"""Numbers out: features of images, distances between them, scores of a generator."""
