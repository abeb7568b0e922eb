"""Bytes to the readers that they would meet, in a file of the name that they would have."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from cifargan.cli.resume import overrides_of
from cifargan.data.folder import Folder
from cifargan.data.loose import load_images
from cifargan.evaluation.extractors.interface import FeatureExtractor
from cifargan.evaluation.extractors.weights import read_state_dict
from cifargan.evaluation.records import FeatureSpace, read_file
from cifargan.evaluation.reference import import_statistics
from cifargan.loading import load_generator
from cifargan.runs.checkpoint import SEAL, load
from cifargan.runs.directory import RunDirectory, all_runs

SPACE = FeatureSpace(extractor="stub", weights_hash="0", resize="none", dtype="float32")
STUB = cast(FeatureExtractor, SimpleNamespace(dim=6, name="stub", space=SPACE))


def sealed(data: bytes) -> bytes:
    """A checkpoint with a checksum that fits, which is something anyone can write."""
    return data + SEAL + hashlib.sha256(data).hexdigest().encode() + b"\n"


class Readers:
    """Each method hands bytes to one reader, and gives what it gave.

    Args:
        folder: where files may be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.class_folder = folder / "pictures" / "cat"
        for made in (self.class_folder, self.run / "checkpoints", self.run / ".hydra"):
            made.mkdir(parents=True)
        (self.run / "provenance.json").write_text("{}")

    def _through(self, name: str, data: bytes, read: Callable[[Path], object]) -> object:
        path = self.folder / name
        path.write_bytes(data)
        return read(path)

    def picture(self, data: bytes) -> object:
        """A picture to be judged."""
        (self.class_folder / "0.png").write_bytes(data)
        return load_images(self.class_folder.parent)

    def training_picture(self, data: bytes) -> object:
        """A picture to train on."""
        (self.class_folder / "0.png").write_bytes(data)
        cache = self.folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        return Folder(root=str(self.class_folder.parent), image_size=8, cache=str(cache)).load()

    def archive(self, data: bytes) -> object:
        """A zip of pictures."""
        return self._through("sent.zip", data, load_images)

    def arrays(self, data: bytes) -> object:
        """An .npz of images."""
        return self._through("sent.npz", data, load_images)

    def statistics(self, data: bytes) -> object:
        """An .npz of means and covariances."""
        return self._through("sent.npz", data, lambda path: import_statistics(path, STUB))

    def weights(self, data: bytes) -> object:
        """Weights of a feature network."""
        return self._through("sent.pth", data, read_state_dict)

    def checkpoint(self, data: bytes) -> object:
        """A checkpoint, as far as it can be read without its networks."""
        return self._through("step_000000001.pt", data, load)

    def generator(self, data: bytes) -> object:
        """A checkpoint, and the generator in it."""
        (self.run / "checkpoints" / "step_000000001.pt").write_bytes(data)
        return load_generator(self.run, device="cpu")

    def overrides(self, data: bytes) -> object:
        """The overrides that a run keeps."""
        (self.run / ".hydra" / "overrides.yaml").write_bytes(data)
        return overrides_of(self.run)

    def pages(self, data: bytes) -> object:
        """The small JSON files of a run: its status, its provenance, its scores."""
        for name in ("status.json", "provenance.json", "evaluation.json"):
            (self.run / name).write_bytes(data)
        directory = RunDirectory(self.run)
        directory.status()
        directory.add_event(kind="fuzzed")
        (self.run / "provenance.json").write_bytes(data)
        all_runs(self.folder)
        return read_file(self.run / "evaluation.json")
