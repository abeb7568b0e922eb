"""The good inputs of each part, and what is made of them."""

# ruff: noqa: S311 - the cases are to be had again
import contextlib
import copy
import functools
import io
import json
import random
import sys
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra
import numpy as np
import torch
import yaml
from hydra._internal.config_repository import CachingConfigRepository
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from cifargan.build import trainer as building
from cifargan.build.check import check
from cifargan.build.parts import build_data
from cifargan.build.settings import plain
from cifargan.cli import main as cifargan
from cifargan.cli.errors import groups, options
from cifargan.cli.overrides import reject_null_groups, split_flags
from cifargan.runs.checkpoint import SEAL_BYTES, CheckpointStore, load
from cifargan.runs.directory import RunDirectory
from cifargan.schema import conf_dir, from_file
from fuzzing.damage import NASTY, damage, disturb, repacked
from fuzzing.judge import Part
from fuzzing.readers import SPACE, Readers, sealed

SMALL = (
    *("debug=fast", "data.image_size=16", "device=cpu", "trainer.steps=1", "model.generator.latent_dim=4"),
    *("model.generator.base_channels=2", "model.discriminator.base_channels=2", "hydra.run.dir=trained"),
)
OPTIONS = ("--experimental-rerun=x", "--config-dir=/tmp", "hydra.run.dir=x", "hydra/launcher=a", "-m")


class Inputs:
    """The good inputs, in a folder of their own.

    Args:
        folder: where files may be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.readers = Readers(folder)
        self.random = np.random.default_rng(0)

    def image(self, seed: int) -> bytes:
        """A small picture in one of the formats and modes that are read."""
        rng = random.Random(seed)
        mode = rng.choice(("RGB", "RGBA", "L", "P", "1", "LA"))
        picture = Image.fromarray(self.random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).convert(mode)
        kind = rng.choice(("PNG", "PNG", "JPEG", "WEBP", "GIF"))
        file = io.BytesIO()
        (picture.convert("RGB") if kind == "JPEG" else picture).save(file, kind)
        return file.getvalue()

    def archive(self) -> bytes:
        """A zip of two classes."""
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for i in range(3):
                archive.writestr(f"data/{'ant' if i else 'bee'}/{i}.png", self.image(2 * i))
        return file.getvalue()

    def images(self, seeds: list[int]) -> object:
        """Read a picture in a folder, in a zip, or as training data."""
        way = random.Random(seeds[0]).randrange(6)
        data = functools.reduce(damage, seeds[1:], self.archive() if way == 0 else self.image(seeds[0]))
        if way == 0:
            return self.readers.archive(data)
        return self.readers.picture(data) if way > 1 else self.readers.training_picture(data)

    def arrays(self, *, compressed: bool) -> bytes:
        """An .npz of three images of two classes."""
        images = self.random.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        save = np.savez_compressed if compressed else np.savez
        save(file, images=images, labels=np.array([0, 1, 1]), classes=np.array(["ant", "bee"]))
        return file.getvalue()

    def statistics(self, *, compressed: bool) -> bytes:
        """An .npz of a mean and a covariance."""
        file = io.BytesIO()
        save = np.savez_compressed if compressed else np.savez
        save(file, mu=np.zeros(6), sigma=np.eye(6), about=np.array(json.dumps({"n": 5, **vars(SPACE)})))
        return file.getvalue()

    def npz(self, seeds: list[int]) -> object:
        """Read arrays as images or as statistics."""
        rng = random.Random(seeds[0])
        compressed = rng.random() < 0.5
        as_images = rng.random() < 0.5
        good = self.arrays(compressed=compressed) if as_images else self.statistics(compressed=compressed)
        # Behind checksums that fit, or with them.
        data = repacked(good, seeds[1:]) if rng.random() < 0.7 else functools.reduce(damage, seeds[1:], good)
        return self.readers.arrays(data) if as_images else self.readers.statistics(data)

    def compose(self, *overrides: str) -> dict[str, Any]:
        """A configuration as Hydra composes it. Its files are read once: that they are YAML is no case."""
        if not GlobalHydra.instance().is_initialized():
            hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir()))
            loader: Any = GlobalHydra.instance().config_loader()
            loader.repository = CachingConfigRepository(loader.repository)
        return plain(hydra.compose("train", ["name=x", *overrides]))

    @functools.cached_property
    def configs(self) -> list[dict[str, Any]]:
        """The composed configurations of some models."""
        models = ("cdcgan", "biggan", "sagan", "acbiggan")
        return [self.compose("data=digits", "evaluator=none", f"model={model}") for model in models]

    def config(self, seeds: list[int]) -> object:
        """Check a configuration, as it is composed or as it lies in a file."""
        config = copy.deepcopy(random.Random(seeds[0]).choice(self.configs))
        for seed in seeds[1:]:
            disturb(config, seed)
        composed = seeds[0] % 2 and not _has_bytes(config)
        return check(OmegaConf.create(config) if composed else from_file(config, "sent"))

    @functools.cached_property
    def settings(self) -> list[str]:
        """Every dotted setting of one configuration."""
        found: list[str] = []

        def walk(node: dict[str, Any], prefix: str) -> None:
            for key, value in node.items():
                found.append(f"{prefix}{key}={value}")
                if isinstance(value, dict):
                    walk(value, f"{prefix}{key}.")

        walk(self.configs[0], "")
        return [*found, *(f"{group}={name}" for group in groups() for name in options(group))]

    def override(self, seed: int) -> str:
        """One override, right or wrong."""
        rng = random.Random(seed)
        text = rng.choice(self.settings)
        key, _, _ = text.partition("=")
        match rng.randrange(6):
            case 0:
                return text
            case 1:
                return f"{rng.choice(('', '+', '++', '~', '-', '--', ' '))}{text}"
            case 2:
                return f"{key}={rng.choice(NASTY)}"
            case 3:
                return f"{key}={rng.choice(('[1,2', '{a:1', '1,2', 'range(3)', 'choice(1)', '../../evil', '${oc.env:HOME}'))}"
            case 4:
                return rng.choice(OPTIONS)
            case _:
                return damage(text.encode(), seed).decode(errors="surrogateescape")

    def overrides(self, seeds: list[int]) -> object:
        """Read the overrides that a run keeps, or compose some as the command line does."""
        lines = [self.override(seed) for seed in seeds[1:]]
        # Composing takes a hundred times as long as reading.
        if seeds[0] % 8:
            text = yaml.safe_dump(lines, allow_unicode=seeds[0] % 5 == 0).encode(errors="surrogatepass")
            return self.readers.overrides(damage(text, seeds[0]) if seeds[0] % 3 else text)
        _, overrides = split_flags(lines)
        reject_null_groups(overrides)
        # Hydra's own settings are the user's on a command line: only files may not have them.
        overrides = [text for text in overrides if "hydra" not in text]
        return check(OmegaConf.create(self.compose(*overrides)))

    @functools.cached_property
    def trained(self) -> Path:
        """The checkpoint of a run of one step."""
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(io.StringIO()):
            code = cifargan(["train", *SMALL])
        if code != 0:
            raise RuntimeError("the run that the checkpoint is taken from failed")
        sys.argv = sys.argv[:1]
        return CheckpointStore(self.folder / "trained" / "checkpoints").find("last")

    @functools.cached_property
    def checkpoint(self) -> bytes:
        """Its bytes, without the checksum."""
        return self.trained.read_bytes()[:-SEAL_BYTES]

    @functools.cached_property
    def state(self) -> dict[str, Any]:
        """What it holds."""
        return load(self.trained)

    @functools.cached_property
    def own(self) -> DictConfig:
        """The configuration of that run, and its images in memory."""
        config = OmegaConf.create(self.state["config"])
        images = build_data(config.data)
        patch.object(building, "build_data", lambda _: images).start()
        return config

    def checkpoints(self, seeds: list[int]) -> object:
        """Bring back a generator, or a whole run, from a checkpoint whose bytes or values were changed."""
        if seeds[0] % 2:
            data = functools.reduce(damage, seeds[1:], self.checkpoint)
        else:
            state = copy.deepcopy(self.state)
            for seed in seeds[1:]:
                disturb(state, seed)
            file = io.BytesIO()
            torch.save(state, file)
            data = file.getvalue()
        data = sealed(data) if seeds[0] % 16 else data
        return self.readers.generator(data) if seeds[0] % 6 else self.resume(data)

    def resume(self, data: bytes) -> object:
        """Build all that training needs from a checkpoint of the run."""
        self.readers.checkpoint(data)
        state = load(self.folder / "step_000000001.pt")
        (self.folder / "resumed").mkdir(exist_ok=True)
        trainer = building.build_trainer(self.own, RunDirectory(self.folder / "resumed"), state=state)
        with trainer.tracker:  # which is closed behind it
            return trainer

    def prepare(self, names: list[str]) -> None:
        """Make what is made once: it is no case, and takes longer than one may."""
        if "checkpoints" in names:
            _ = self.checkpoint, self.own
        # The run that was trained leaves its own Hydra behind.
        GlobalHydra.instance().clear()
        if {"configs", "overrides"}.intersection(names):
            _ = self.settings

    def parts(self) -> dict[str, Part]:
        """Every part by its name."""
        return {
            "configs": Part(self.config, most=3),
            "overrides": Part(self.overrides, most=3),
            "checkpoints": Part(self.checkpoints),
            "images": Part(self.images, most=5),
            "npz": Part(self.npz, most=5),
        }


def _has_bytes(tree: Any) -> bool:
    """What no YAML file gives, and a checkpoint can."""
    if isinstance(tree, dict):
        return any(not isinstance(key, str | int) or _has_bytes(value) for key, value in tree.items())
    return isinstance(tree, bytes) or (isinstance(tree, list) and any(map(_has_bytes, tree)))
