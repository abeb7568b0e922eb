"""Images from a trained generator: batch-norm modes, classes in turn, interpolation.

Everything here draws from its own random generators, seeded by what is asked; the global ones are never touched.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from cifargan.errors import UserError, did_you_mean
from cifargan.images import to_uint8
from cifargan.latents import latents, slerp
from cifargan.models.interface import Generator
from cifargan.standing_stats import MIXED_BATCH, standing_statistics_

BatchNormMode = Literal["standing", "running", "batch"]
Classes = Sequence[str | int] | str | int | None  # names or numbers, one or many; None for all


class _Batch(NamedTuple):
    """What goes through the network at once, and which part of it was asked for."""

    labels: Tensor  # (B,) int64
    indices: Tensor  # (B,) int64, numbers within the class
    wanted: Tensor  # (W,) int64 positions in the batch


class Sampler:
    """Draws images from a private copy of a generator, which is left as it is.

    Image `index` of a class under a seed has the same latent whatever else is asked for and however it is batched.
    Its pixels are then the same too, but for the rounding of kernels that a device chooses by batch size (a level of
    256 here and there). Batch norm may use

    - "standing": statistics averaged over fresh batches, again for every truncation (`standing_statistics_`);
    - "running": the running statistics of training;
    - "batch": the statistics of the batch. An image is then always generated in the same company: batch k holds
      images k m to (k + 1) m - 1 of every class, with m = `MIXED_BATCH` // K, whether all or one of them are wanted.
      So a sheet of one class is normalised as a mixed one is, at K times the work.

    Args:
        generator: The network, as trained; it runs in float32.
        classes: The K class names in the order of the labels. Ignored by an unconditional network.
        device: Where to run.
        batch_norm: The mode above.
        batch_size: Images that go through the network at once in the first two modes. It changes speed alone.
        standing_batches: Batches of `MIXED_BATCH` that standing statistics are averaged over.

    Raises:
        UserError: There is not one name for each class of the network, or a setting is out of range.
    """

    def __init__(
        self,
        generator: Generator,
        classes: Sequence[str] = (),
        *,
        device: torch.device | str = "cpu",
        batch_norm: BatchNormMode = "standing",
        batch_size: int = 100,
        standing_batches: int = 16,
    ) -> None:
        if batch_norm not in get_args(BatchNormMode):
            raise UserError(f"batch_norm={batch_norm!r} is unknown: choose from {', '.join(get_args(BatchNormMode))}.")
        if batch_size < 1 or standing_batches < 1:
            raise UserError(f"batch_size={batch_size} and standing_batches={standing_batches} must be at least 1.")
        if generator.num_classes and generator.num_classes != len(classes):
            raise UserError(f"The generator has {generator.num_classes} classes, but {len(classes)} names were given.")
        self.classes = tuple(classes) if generator.num_classes else ()
        self.device = torch.device(device)
        self.batch_norm = batch_norm
        self.batch_size = batch_size
        self.standing_batches = standing_batches
        self._network = copy.deepcopy(generator).float().requires_grad_(False).to(self.device).eval()
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)
        self._standing_for: float | None = math.nan  # a truncation that equals none, so the first call computes
        if batch_norm == "batch":
            for module in self._network.modules():
                if isinstance(module, _BatchNorm):
                    module.train()  # the copy's running statistics move, but nothing reads them

    def labels(self, n: int, *, classes: Classes = None) -> Tensor:
        """Say which class each image of `sample(n, classes=classes)` is of: the classes take turns.

        Args:
            n: How many images, at least 1.
            classes: Names or numbers; None for all. An unconditional network ignores them.

        Returns:
            (n,) int64 labels, all 0 without classes.

        Raises:
            UserError: A class is unknown or named twice, or `n` is below 1.
        """
        if n < 1:
            raise UserError(f"Cannot make {n} images: ask for at least 1.")
        wanted = torch.tensor(self._wanted(classes))
        return wanted[torch.arange(n) % len(wanted)]

    def stream(
        self,
        n: int,
        *,
        classes: Classes = None,
        truncation: float | None = None,
        seed: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what `sample` returns in batches, without leaving the device. Takes and raises what `sample` does.

        Args:
            n: As of `sample`.
            classes: As of `sample`.
            truncation: As of `sample`.
            seed: As of `sample`.
            part: (k, m): the k-th of m stretches of batches, which one after the other are the whole.

        Yields:
            (B, 3, H, W) uint8 images and (B,) int64 labels, both on the sampler's device.

        Raises:
            UserError: As `sample`; after the last batch, some images were not finite.
        """
        labels = self.labels(n, classes=classes)
        indices = torch.arange(n) // len(self._wanted(classes))
        batches = list(self._batches(labels, indices))
        k, m = part
        for batch in batches[len(batches) * k // m : len(batches) * (k + 1) // m]:
            self._settle(truncation)
            images = self._images(self._latents(batch, truncation, seed), batch.labels)
            wanted = batch.wanted.to(self.device)
            yield images[wanted], batch.labels.to(self.device)[wanted]
        self._require_finite()

    def sample(
        self,
        n: int,
        *,
        classes: Classes = None,
        truncation: float | None = None,
        seed: int = 0,
        progress: bool = False,
    ) -> Tensor:
        """Make images; the classes take turns. A longer sample begins with the shorter one.

        Args:
            n: How many images, at least 1.
            classes: Names or numbers; None for all. An unconditional network ignores them.
            truncation: Threshold on each latent coordinate, above 0; None for none.
            seed: At least 0.
            progress: Show a progress bar on stderr.

        Returns:
            (n, 3, H, W) uint8 on the CPU; `labels` has the classes.

        Raises:
            UserError: A class is unknown or named twice, `n`, `truncation` or `seed` is out of range, or some images
                are not finite.
        """
        made = []
        with tqdm(total=n, unit="image", disable=not progress) as bar:
            for images, _ in self.stream(n, classes=classes, truncation=truncation, seed=seed):
                made.append(images.cpu())
                bar.update(len(images))
        return torch.cat(made)

    def interpolate(
        self, a: str | int, b: str | int, *, steps: int, rows: int = 1, truncation: float | None = None, seed: int = 0
    ) -> Tensor:
        """Turn images of one class into another's.

        Row r starts at image r of class `a`. Between different classes its latent stays, and what the network reads
        from its embedding tables (`F.embedding`) moves in a straight line from `a`'s row to `b`'s. Within one class, or
        without classes, the latent moves instead: along a great circle to that of image rows + r.

        Args:
            a: Name or number of the first class. An unconditional network ignores both.
            b: Name or number of the last class; may be the same.
            steps: Frames a row, both ends included, at least 2.
            rows: How many images to turn, at least 1.
            truncation: Threshold on each latent coordinate, above 0; None for none.
            seed: At least 0.

        Returns:
            (rows, steps, 3, H, W) uint8 on the CPU.

        Raises:
            UserError: A class is unknown, the network has no class embedding, or a number is out of range.
        """
        if steps < 2 or rows < 1:
            raise UserError(f"Cannot interpolate in {steps} steps and {rows} rows: ask for at least 2 and 1.")
        (first,), (last,) = self._wanted(a if self.classes else None), self._wanted(b if self.classes else None)
        frames = []
        for t in torch.linspace(0, 1, steps).tolist():
            made = []
            for batch in self._batches(torch.full((rows,), first), torch.arange(rows)):
                z, wanted = self._latents(batch, truncation, seed), batch.wanted
                if first == last:
                    ends = _Batch(batch.labels[wanted], batch.indices[wanted] + rows, wanted)
                    z[wanted] = slerp(z[wanted], self._latents(ends, truncation, seed), t)
                others, weight = batch.labels.clone(), torch.zeros(len(z), 1)
                others[wanted], weight[wanted] = last, t
                self._settle(truncation)
                with _MixedEmbeddings(others.to(self.device), weight.to(self.device)) as mixed:
                    made.append(self._images(z, batch.labels).cpu()[wanted])
                if first != last and not mixed.lookups:
                    raise UserError("This generator has no class embedding to mix: interpolate within one class.")
            frames.append(torch.cat(made))
        self._require_finite()
        return torch.stack(frames, dim=1)  # steps times (rows, 3, H, W) -> (rows, steps, 3, H, W)

    def _wanted(self, classes: Classes) -> list[int]:
        if not self.classes:
            return [0]
        if classes is None:
            return list(range(len(self.classes)))
        named = [classes] if isinstance(classes, str | int) else list(classes)
        wanted = [self._number(name) for name in named]
        if not wanted or len(set(wanted)) < len(wanted):
            raise UserError(f"Classes {named} cannot be sampled: name at least one, and each once.")
        return wanted

    def _number(self, name: str | int) -> int:
        if isinstance(name, int) and 0 <= name < len(self.classes):
            return name
        if name in self.classes:
            return self.classes.index(str(name))
        hint = did_you_mean(str(name).lower(), self.classes) or f"; choose from {', '.join(self.classes)}"
        raise UserError(f"there is no class {name!r}{hint}")

    def _batches(self, labels: Tensor, indices: Tensor) -> Iterator[_Batch]:
        if self.batch_norm != "batch":
            for start in range(0, len(labels), self.batch_size):
                part = slice(start, start + self.batch_size)
                yield _Batch(labels[part], indices[part], torch.arange(len(labels[part])))
            return
        classes = max(len(self.classes), 1)
        each = max(MIXED_BATCH // classes, 1)
        everyone = torch.arange(classes).repeat(each)
        numbers = torch.arange(each).repeat_interleave(classes)
        for company in dict.fromkeys((indices // each).tolist()):
            asked = indices // each == company
            positions = (indices[asked] - company * each) * classes + labels[asked]
            yield _Batch(everyone, company * each + numbers, positions)

    def _latents(self, batch: _Batch, truncation: float | None, seed: int) -> Tensor:
        latent_dim = self._network.latent_dim
        return latents(batch.labels, batch.indices, latent_dim=latent_dim, truncation=truncation, seed=seed)

    def _settle(self, truncation: float | None) -> None:
        if self.batch_norm == "standing" and truncation != self._standing_for:
            # Seed 0 always: the statistics belong to the network, not to the sample.
            standing_statistics_(self._network, batches=self.standing_batches, truncation=truncation, seed=0)
            self._standing_for = truncation

    @torch.no_grad()
    def _images(self, z: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            images = self._network(z.to(self.device), y.to(self.device))
        # Asked for at the end alone: a question for every batch would make the device wait for the host.
        self._finite = self._finite & images.isfinite().all()
        return to_uint8(images)

    def _require_finite(self) -> None:
        """Raise where an image since the last call was no numbers; as bytes it looks like black pixels."""
        finite, self._finite = bool(self._finite), torch.ones((), dtype=torch.bool, device=self.device)
        if not finite:
            raise UserError("the generator's images are not finite: it has diverged; take an earlier checkpoint")


class _MixedEmbeddings(TorchFunctionMode):
    """While active, moves each label embedding towards that of `others` (N,) by `weight` (N, 1), each in [0, 1].

    It acts where tables are read, so it needs to know nothing of the layers that read them, and tables that are
    parametrised, spectrally normalised say, count with their effective weight.
    """

    def __init__(self, others: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.others = others
        self.weight = weight
        self.lookups = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is not F.embedding:
            return output
        self.lookups += 1
        _, table = args
        return torch.lerp(output, F.embedding(self.others, table), self.weight)
