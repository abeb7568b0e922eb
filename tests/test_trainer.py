"""What a trainer writes with, and checkpoints that do not fit it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from omegaconf import DictConfig

from cifargan.build import build_trainer
from cifargan.config import parse
from cifargan.errors import UserError
from cifargan.runs.directory import RunDirectory
from cifargan.training.loop import Trainer

Compose = Callable[..., DictConfig]
OpenTrainer = Callable[..., AbstractContextManager[Trainer]]


def test_the_loggers_that_are_chosen_write_and_no_others(trainer_for: OpenTrainer, tmp_path: Path) -> None:
    def written() -> set[str]:
        return {path.name.split(".")[0] for path in tmp_path.iterdir() if path.name != "metrics.jsonl"}

    with trainer_for("model=dcgan", "trainer.loggers=[]") as trainer:
        trainer.tracker.scalars(1, {"a": 1.0})
        trainer.tracker.text("config", "a: 1")
    assert written() == set()
    with trainer_for("model=dcgan") as trainer:
        trainer.tracker.scalars(1, {"a": 1.0})
    assert written() == {"events", "metrics"}


def test_a_checkpoint_that_does_not_fit_leaves_the_run_as_it_is(
    trainer_for: OpenTrainer, composed: Compose, tmp_path: Path
) -> None:
    with trainer_for("model=dcgan") as trainer:
        state = trainer.state()
        config = composed(
            *("data=digits", "data.splits=[test]", "model=dcgan", "trainer.batch_size=4"),
            *("model.generator.base_channels=16", "model.discriminator.base_channels=8"),
        )
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"^the checkpoint is of another generator"):
        build_trainer(parse(config), RunDirectory(tmp_path), state=state)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_other_classes_are_told_as_such_and_not_as_another_generator(
    trainer_for: OpenTrainer, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trainer_for("model=cdcgan") as trainer:
        state = trainer.state()
    monkeypatch.undo()
    config = composed("data=digits", 'data.classes=["0","1"]', "model=cdcgan")
    with pytest.raises(UserError, match=r"^the checkpoint has the classes \['0', '1', '2'"):
        build_trainer(parse(config), RunDirectory(tmp_path), state=state)
