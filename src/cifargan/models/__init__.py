"""Networks: maps between latents, images and judgements. They know torch and nothing else."""
