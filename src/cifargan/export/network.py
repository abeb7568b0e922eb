"""A generator for export: plain weights, with spectral norm and standing statistics folded in."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from cifargan.models.interface import Generator
from cifargan.models.resampling import fold_
from cifargan.models.spectral import remove_spectral_norm_
from cifargan.standing_stats import standing_statistics_


@dataclass(frozen=True, kw_only=True)
class PlainGenerator:
    """What is exported.

    Attributes:
        network: on the CPU, float32, in eval mode; a function of z and y alone.
        truncation: the threshold that its batch-norm statistics were made for; None for none.
    """

    network: Generator
    truncation: float | None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its state dict."""
        return self.network.state_dict()

    @property
    def advice(self) -> str:
        """Which latents to give it."""
        if not any(isinstance(module, _BatchNorm) for module in self.network.modules()):
            return "no batch norm: any truncation does; a lower one gives more typical images that differ less"
        if self.truncation is None:
            return "the batch-norm statistics are those of untruncated z: draw it from N(0, 1) as it comes"
        return (
            f"the batch-norm statistics are those of z with |z| <= {self.truncation:g}: draw each coordinate from N(0, 1) "
            "again until it is; other truncations want an export of their own"
        )


def plain_generator(generator: Generator, *, truncation: float | None, device: torch.device) -> PlainGenerator:
    """Fold standing statistics and spectral norm into a copy of a generator.

    Args:
        generator: as trained; left as it is.
        truncation: the threshold on latents that the statistics are made for; None for none.
        device: where to make them.
    """
    network = copy.deepcopy(generator).float().requires_grad_(False).to(device)
    # Seed 0, as in sampling: what is drawn with these statistics is what the run draws.
    standing_statistics_(network, truncation=truncation, seed=0)
    remove_spectral_norm_(network)
    return PlainGenerator(network=network.cpu().eval(), truncation=truncation)


def traceable(plain: PlainGenerator) -> Generator:
    """A copy in the form that every runtime knows: no folded convolutions, no special layout in memory."""
    network = copy.deepcopy(plain.network)
    fold_(network, up=False, down=False)
    return network.to(memory_format=torch.contiguous_format)


def example(network: Generator, n: int) -> tuple[Tensor, Tensor]:
    """Latents z (n, Z) and labels y (n,) to try a network with; the same each time."""
    z = torch.randn(n, network.latent_dim, generator=torch.Generator().manual_seed(0))
    return z, torch.arange(n) % max(network.num_classes, 1)
