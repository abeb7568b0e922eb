"""The real side of a comparison: features of real images, kept between runs, or statistics that others computed."""

import hashlib
import json
import logging
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from cifargan.data.cache import cache_dir
from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.evaluation.features import FeatureExtractor
from cifargan.evaluation.measure import in_batches, measure
from cifargan.evaluation.metrics import Gaussian
from cifargan.evaluation.records import ReferenceCard
from cifargan.files import write_atomically

log = logging.getLogger(__name__)

FORMAT = 1  # raised when the same images would give other features


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
    and dtype. A changed data set has another key, so it can never meet an old file; a damaged file is told and
    computed anew.

    Args:
        folder: where the files lie; made when first saved to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: dict[str, Any]) -> Path:
        """The file of one key."""
        return self.folder / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}.pt"

    def load(self, key: dict[str, Any]) -> tuple[Tensor, Gaussian] | None:
        """Features (N, d) float32 and their moments, or None where there are none."""
        path = self.path(key)
        if not path.exists():
            return None
        try:
            page = torch.load(path, map_location="cpu", weights_only=True)
            features, mean, covariance = page["features"], page["mean"], page["covariance"]
            if page["key"] != key or page["digest"] != _digest(features, mean, covariance):
                raise ValueError("its content is not what was written")
            return features, Gaussian(mean, covariance, len(features))
        except Exception as error:  # a damaged file can raise anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            log.warning("the cached features in %s are damaged (%s): computing them anew", path, reason)
            return None

    def save(self, key: dict[str, Any], features: Tensor, gaussian: Gaussian) -> None:
        """Store features; a disk that refuses costs a warning and no run."""
        mean, covariance, _ = gaussian
        page = {
            "key": key,
            "features": features,
            "mean": mean,
            "covariance": covariance,
            "digest": _digest(features, mean, covariance),
        }
        try:
            write_atomically(self.path(key), lambda file: torch.save(page, file))
        except UserError as error:
            log.warning("features are not cached (%s): the next run computes them again", error)


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


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
    try:
        # Opened here, because NumPy leaves a file that is no zip open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            mean, covariance = (torch.from_numpy(np.asarray(file[name], dtype=np.float64)) for name in ("mu", "sigma"))
            about: dict[str, Any] = json.loads(str(file["about"])) if "about" in file else {}
    except KeyError as error:
        raise UserError(f"{path} has no arrays `mu` and `sigma`: it holds no statistics") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged or no .npz file: make or fetch it anew") from error
    d = extractor.dim
    if mean.shape != (d,) or covariance.shape != (d, d):
        raise UserError(
            f"{path}: mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)} do not go with {extractor.name}, "
            f"which has {d} features"
        )
    if not (mean.isfinite().all() and covariance.isfinite().all()) or not torch.allclose(covariance, covariance.T):
        raise UserError(f"{path}: mu or sigma is not finite, or sigma is not symmetric")
    for name, own in asdict(extractor.space).items():
        if about.get(name, own) != own:
            raise UserError(f"{path} was made with {name} {about[name]}, not {own}")
    n = about.get("n")
    card = ReferenceCard(
        name=str(about.get("name", path.stem)),
        split=str(about.get("split", "statistics")),
        n=n,
        fingerprint=str(about.get("fingerprint", hashlib.sha256(path.read_bytes()).hexdigest())),
    )
    return Reference(
        card=card,
        # The number decides nothing but what a record says.
        gaussian=Gaussian(mean, covariance, n or 0),
        features=torch.empty(0, d),
        labels=torch.empty(0, dtype=torch.int64),
    )
