"""The real side of a comparison: features of real images, kept between runs, or statistics that others computed."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from cifargan import tensor_file
from cifargan.data.cache import cache_dir
from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.evaluation.extractors.interface import FeatureExtractor
from cifargan.evaluation.extractors.weights import sha256_of
from cifargan.evaluation.feature_stats import in_batches, measure
from cifargan.evaluation.metrics import Gaussian
from cifargan.evaluation.records import ReferenceCard
from cifargan.files import write_atomically
from cifargan.untrusted import ArrayFile, readable, refusing

log = logging.getLogger(__name__)

FORMAT = 1  # raised when the same images would give other features
MAX_ABOUT = 100_000  # bytes
NUMBERS = "fiu"  # NumPy's kinds of types: floats and integers


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """Real images, as far as they are known.

    Attributes:
        card: what they are.
        gaussian: mean and covariance of their features.
        features: (N, d) float32 on the CPU; no rows where only statistics are known.
        labels: (N,) int64.
        classes: class names.
        images: the pictures, (N, 3, H, W) uint8; None where only statistics are known.
    """

    card: ReferenceCard
    gaussian: Gaussian
    features: Tensor
    labels: Tensor
    classes: tuple[str, ...] = ()
    images: Tensor | None = None

    @property
    def has_features(self) -> bool:
        """Whether more than mean and covariance is known."""
        return len(self.features) > 0


def card_of(images: ImageSet) -> ReferenceCard:
    """What real images are, in a record."""
    return ReferenceCard(name=images.name, split="_".join(images.splits), n=len(images), fingerprint=images.fingerprint)


def reference_of(
    images: ImageSet,
    extractor: FeatureExtractor,
    *,
    device: torch.device,
    batch_size: int = 100,
    folder: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Reference:
    """Features of real images: from the cache where the very same were looked at before, else computed and cached.

    Args:
        images: at least two.
        extractor: images to features.
        device: where it runs.
        batch_size: images at once; has no influence on the features but for rounding.
        folder: the cache; None: `features` in the user's cache folder.
        stop: asked after each batch.

    Raises:
        UserError: fewer than two images.
    """
    card = card_of(images)
    if len(images) < 2:
        raise UserError(f"{images.name} has {len(images)} image, and a score needs 2: choose evaluator=none")
    key = {
        **asdict(card),
        **asdict(extractor.space),
        "format": FORMAT,
    }
    cache = FeatureCache(folder or cache_dir() / "features")
    found = cache.load(key)
    if found is None:
        label = f"features of {images.name} {card.split}"
        batches = in_batches(images.images, images.labels, batch_size)
        seen = measure(batches, len(images), extractor, device=device, label=label, stop=stop)
        found = seen.features, seen.gaussian
        cache.save(key, *found)
    features, gaussian = found
    return Reference(
        card=card,
        gaussian=gaussian,
        features=features,
        labels=images.labels,
        classes=images.classes,
        images=images.images,
    )


class FeatureCache:
    """Features of real images on disk, one file for each key.

    The key is made of all that decides them: data fingerprint, split, number, extractor, hash of its weights, resize
    and dtype. A changed data set has another key, so it can never meet an old file; a damaged file is
    reported and recomputed.

    Args:
        folder: where the files lie; made when first saved to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: dict[str, Any]) -> Path:
        """The file of one key."""
        return (
            self.folder
            / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}{tensor_file.SUFFIX}"
        )

    def load(self, key: dict[str, Any]) -> tuple[Tensor, Gaussian] | None:
        """Features (N, d) float32 and their moments, or None where there are none."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            tensors, description = tensor_file.read(path)
            features, mean, covariance = tensors["features"], tensors["mean"], tensors["covariance"]
            if description["key"] != key:
                raise ValueError("it is of another key")
            _require_moments(features, mean, covariance, key["n"])
            return features, Gaussian(mean, covariance, len(features))
        except Exception as error:  # a damaged file can raise anything
            reason = readable(str(error), limit=120) or type(error).__name__
            log.warning("the cached features in %s are damaged (%s): recomputing them", path, reason)
            return None

    def save(self, key: dict[str, Any], features: Tensor, gaussian: Gaussian) -> None:
        """Store features; a file that cannot be written costs a warning only."""
        mean, covariance, _ = gaussian
        tensors = {"features": features, "mean": mean, "covariance": covariance}
        try:
            write_atomically(self.path(key), tensor_file.to_bytes(tensors, {"key": key}))
        except UserError as error:
            log.warning("features are not cached (%s): the next run computes them again", error)


def _require_moments(features: Tensor, mean: Tensor, covariance: Tensor, n: int) -> None:
    """Check that what a cache holds can be features of n images and their moments.

    Raises:
        ValueError: they are not.
    """
    d = features.shape[-1]
    shapes = features.shape == (n, d) and mean.shape == (d,) and covariance.shape == (d, d)
    kinds = (features.dtype, mean.dtype, covariance.dtype) == (torch.float32, torch.float64, torch.float64)
    if not shapes or not kinds:
        raise ValueError("its arrays are not features and their moments")
    if not all(bool(part.isfinite().all()) for part in (features, mean, covariance)):
        raise ValueError("its numbers are not finite")
    if not torch.allclose(features.double().mean(dim=0), mean, rtol=1e-4, atol=1e-4):
        raise ValueError("its mean is not that of its features")


def export_statistics(path: Path, reference: Reference, extractor: FeatureExtractor) -> None:
    """Write `mu` and `sigma` as other tools read them, and beside them what they are of.

    Args:
        path: an `.npz` file.
        reference: mean (d,) and covariance (d, d), float64.
        extractor: what gave the features.

    Raises:
        UserError: the file cannot be written.
    """
    about = {**asdict(reference.card), **asdict(extractor.space)}
    mean, covariance, _ = reference.gaussian

    def write(file: IO[bytes]) -> None:
        np.savez(file, mu=mean.numpy(), sigma=covariance.numpy(), about=np.array(json.dumps(about)))

    write_atomically(path, write)


def import_statistics(path: Path, extractor: FeatureExtractor) -> Reference:
    """Read `mu` (d,) and `sigma` (d, d) from an `.npz` file. They allow a Fréchet distance and nothing else.

    Raises:
        UserError: the file is damaged, holds something else, or belongs to another extractor.
    """
    d = extractor.dim
    shown = readable(str(path))
    with refusing(f"{shown} is damaged or no .npz file: make or download it again"), ArrayFile(path) as file:
        if not ("mu" in file and "sigma" in file):
            raise UserError(f"{shown} has no arrays `mu` and `sigma`: it holds no statistics")
        # Before they are read, so that no more is read than they take.
        (mu, mu_type), (sigma, sigma_type) = file.kind("mu"), file.kind("sigma")
        if mu_type.kind not in NUMBERS or sigma_type.kind not in NUMBERS:
            raise ValueError("they are no numbers")
        if mu != (d,) or sigma != (d, d):
            raise UserError(
                f"{shown}: mu {mu} and sigma {sigma} do not go with {extractor.name}, which has {d} features"
            )
        mean, covariance = (torch.from_numpy(file.read(name).astype(np.float64)) for name in ("mu", "sigma"))
        about = _about(file)
    if not (mean.isfinite().all() and covariance.isfinite().all()) or not torch.allclose(covariance, covariance.T):
        raise UserError(f"{shown}: mu or sigma is not finite, or sigma is not symmetric")
    if bool((covariance.diagonal() < 0).any()):
        raise UserError(f"{shown}: sigma has negative variances: it is no covariance")
    for name, own in asdict(extractor.space).items():
        if about.get(name, own) != own:
            raise UserError(f"{shown} was made with {name} {readable(str(about[name]), limit=80)}, not {own}")
    n = about.get("n")
    card = ReferenceCard(
        name=readable(str(about.get("name", path.stem)), limit=80),
        split=readable(str(about.get("split", "statistics")), limit=80),
        n=n,
        fingerprint=readable(str(about.get("fingerprint") or sha256_of(path)), limit=80),
    )
    return Reference(
        card=card,
        # The number decides nothing but what a record says.
        gaussian=Gaussian(mean, covariance, n or 0),
        features=torch.empty(0, d),
        labels=torch.empty(0, dtype=torch.int64),
    )


def _about(file: ArrayFile) -> dict[str, Any]:
    """What statistics written by `export_statistics` say of themselves; empty for those of other tools.

    Raises:
        ValueError: it is not as `export_statistics` writes it.
    """
    if "about" not in file:
        return {}
    shape, dtype = file.kind("about")
    if shape != () or dtype.kind != "U" or dtype.itemsize > MAX_ABOUT:
        raise ValueError("`about` was not written by cifargan")
    about = json.loads(str(file.read("about")))
    n = about.get("n") if isinstance(about, dict) else 0
    if not isinstance(about, dict) or not (n is None or (isinstance(n, int) and 0 < n < 2**53)):
        raise ValueError("`about` was not written by cifargan")
    return about
