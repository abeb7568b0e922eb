"""A narrow trainer on digits from overrides."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from cifargan.build.trainer import build_trainer
from cifargan.data.sources import ImageSet
from cifargan.registry import SOURCES, construct
from cifargan.runs.directory import RunDirectory
from cifargan.training.trainer import Trainer

Compose = Callable[..., DictConfig]
OpenTrainer = Callable[..., AbstractContextManager[Trainer]]


@pytest.fixture(scope="session")
def digits() -> Callable[[DictConfig], ImageSet]:
    """Loads the digits once for each node."""
    loaded: dict[str, ImageSet] = {}

    def load(node: DictConfig) -> ImageSet:
        key = OmegaConf.to_yaml(node)
        if key not in loaded:
            loaded[key] = construct(SOURCES, node, "data").load()
        return loaded[key]

    return load


@pytest.fixture
def trainer_for(
    composed: Compose,
    narrowed: Callable[[DictConfig], list[str]],
    digits: Callable[[DictConfig], ImageSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> OpenTrainer:
    """A function that opens a narrow trainer on digits from overrides."""
    monkeypatch.setattr("cifargan.build.trainer.build_data", digits)

    @contextmanager
    def make(*overrides: str) -> Iterator[Trainer]:
        overrides = ("data=digits", "data.splits=[test]", "trainer.batch_size=4", *overrides)
        config = composed(*overrides, *narrowed(composed(*overrides)))
        benchmark = torch.backends.cudnn.benchmark
        trainer = build_trainer(config, RunDirectory(tmp_path))
        with trainer.tracker:
            yield trainer
        torch.backends.cudnn.benchmark = benchmark

    return make
