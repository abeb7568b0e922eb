"""Batch-norm statistics for sampling, made for the weights and the truncation that are sampled with."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from cifargan.latents import random_stream, truncated_normal
from cifargan.models.interface import Generator

MIXED_BATCH = 100  # images in a batch whose statistics count: fixed, so that no setting of speed changes an image


@torch.no_grad()
def standing_statistics_(
    generator: Generator,
    *,
    batches: int = 16,
    batch_size: int = MIXED_BATCH,
    truncation: float | None = None,
    seed: int,
) -> None:
    """Replace the running statistics of every batch norm by averages over fresh batches of all classes.

    Brock et al. 2019, appendix C.1 ("standing statistics"): each running mean and variance becomes the plain average of
    the means and the unbiased variances of `batches` batches. Leaves the network in eval mode; dropout is off.

    Args:
        generator: Changed in place; runs on the device it is on.
        batches: How many batches to average over.
        batch_size: Images a batch; the classes take turns.
        truncation: Truncation of the latents: the one that is sampled with, since the statistics depend on it.
        seed: Of the latents, at least 0.

    Raises:
        UserError: `truncation` is not above 0 or `seed` is negative.
    """
    generator.eval()
    norms = [module for module in generator.modules() if isinstance(module, _BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    device = next(generator.parameters()).device
    noise = random_stream(seed)
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        for batch in range(batches):
            for norm in norms:
                # A plain average. torch's own (momentum None) has the host read a counter in every layer.
                norm.momentum = 1.0 / (batch + 1)
            turn = torch.arange(batch * batch_size, (batch + 1) * batch_size)
            z = truncated_normal(batch_size, generator.latent_dim, truncation=truncation, generator=noise)
            with torch.autocast(device.type, enabled=False):
                generator(z.to(device), (turn % max(generator.num_classes, 1)).to(device))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        generator.eval()
