"""Which batch fits: the memory that training takes at its peak, measured on a GPU or estimated without one."""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from cifargan.bench.presets import random_images
from cifargan.build.gan import build_gan
from cifargan.training.speed import Switches
from cifargan.training.step import GANStep

BATCH_SIZES = (16, 32, 64, 128, 256)
IMAGES = 50_000  # on the device as bytes, as many as CIFAR-10 has
BUDGETS_GB = (4, 8, 16)
KEPT_FREE = 0.1
GB = 1e9
# What training chooses for itself, but for the recording, whose pool is as large as what it replays.
CHOSEN = Switches(channels_last=True, fused=True, batched_spectral_norm=True, fold_up=True, fold_down=True)


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What one amount of memory is enough for.

    Attributes:
        gigabytes: the amount, in 10^9 bytes, of which a tenth is to stay free.
        batch_size: the largest batch that fits at once; 0: none.
        accumulate: parts that the preset's own batch has to be split into; None: even single images do not fit.
    """

    gigabytes: int
    batch_size: int
    accumulate: int | None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """How much a preset needs.

    Attributes:
        estimated: whether this was counted on tensors without data, which knows of no kernel's workspace.
        precision: the number format that it holds for.
        batch_size: the preset's own.
        peaks: bytes at the peak of an iteration, for each batch size.
        fits: what some sizes of memory are enough for.
    """

    estimated: bool
    precision: str
    batch_size: int
    peaks: dict[int, int]
    fits: list[Fit]


def which_batch_fits(config: DictConfig, device: torch.device, *, batch_sizes: Sequence[int] = BATCH_SIZES) -> Memory:
    """Peaks at several batch sizes, and what follows for common sizes of memory.

    Args:
        config: the composed configuration.
        device: measured there if it is a CUDA device, else estimated.
        batch_sizes: ascending.
    """
    measured = device.type == "cuda"
    peaks = measured_peaks(config, batch_sizes, device) if measured else estimated_peaks(config, batch_sizes)
    return Memory(
        estimated=not measured,
        precision=config.precision,
        batch_size=config.trainer.batch_size,
        peaks=peaks,
        fits=[fit(peaks, gigabytes, wanted=config.trainer.batch_size) for gigabytes in BUDGETS_GB],
    )


def fit(peaks: Mapping[int, int], gigabytes: int, *, wanted: int) -> Fit:
    """What fits into an amount of memory, on the straight line through the peaks of the two largest batches.

    Args:
        peaks: bytes for each batch size, at least two.
        gigabytes: in 10^9 bytes.
        wanted: the batch size to train with.
    """
    small, large = sorted(peaks)[-2:]
    each = (peaks[large] - peaks[small]) / (large - small)
    room = gigabytes * GB * (1 - KEPT_FREE) - (peaks[large] - each * large)
    most = max(0, int(room / each))
    parts = [n for n in range(1, wanted + 1) if wanted % n == 0 and wanted // n <= most]
    return Fit(gigabytes=gigabytes, batch_size=most, accumulate=min(parts, default=None))


def measured_peaks(config: DictConfig, batch_sizes: Sequence[int], device: torch.device) -> dict[int, int]:
    """Bytes that two iterations take on a CUDA device, for each batch size that fits there."""
    peaks: dict[int, int] = {}
    for batch_size in batch_sizes:
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        try:
            gan = _gan(config, device)
            _set_batch(gan, batch_size)
            for _ in range(2):
                gan.iterate()
        except torch.OutOfMemoryError:
            break
        torch.cuda.synchronize(device)
        peaks[batch_size] = torch.cuda.max_memory_allocated(device) - before
        del gan
    return peaks


def estimated_peaks(config: DictConfig, batch_sizes: Sequence[int]) -> dict[int, int]:
    """Bytes that an iteration would take, counted on tensors that have shapes and no data."""
    peaks = {}
    with (
        # Tensors without data refuse to be moved, which they need not be, and to be copied by way of their storage.
        patch.object(nn.Module, "to", lambda network, *_, **__: network),
        patch.object(Tensor, "__deepcopy__", lambda tensor, memo: memo.setdefault(id(tensor), tensor.detach().clone())),
        FakeTensorMode(allow_non_fake_inputs=True),
        LiveStorage() as storage,
    ):
        gan = _gan(config, torch.device("cpu"))
        _set_batch(gan, 1)
        gan.iterate()  # after which the optimisers have their moments
        for batch_size in batch_sizes:
            _set_batch(gan, batch_size)
            storage.peak = storage.now
            gan.iterate()
            peaks[batch_size] = storage.peak
    return peaks


def _gan(config: DictConfig, device: torch.device) -> GANStep:
    images = random_images(IMAGES, image_size=config.data.image_size)
    return build_gan(config, images=images, device=device, switches=CHOSEN)


def _set_batch(gan: GANStep, batch_size: int) -> None:
    """Go on with another batch size; one discriminator update an iteration has the peak of many."""
    gan.schedule = replace(gan.schedule, batch_size=batch_size, accumulate=1, d_steps=1)
    gan.stream.batch_size = batch_size


class LiveStorage(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all tensors that an operator has returned while it is entered and that are still there.

    Attributes:
        now: bytes at this moment.
        peak: the most at any moment.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_flatten(result)[0]:
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata  # views share it
        if key in self._known:
            return
        nbytes = storage.nbytes()
        self._known.add(key)
        self.now += nbytes
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, nbytes)

    def _forget(self, key: int, nbytes: int) -> None:
        self._known.discard(key)
        self.now -= nbytes
