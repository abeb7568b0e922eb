"""The whole loop: runs that go on in the same bits, that stop when they must, and keep what they should."""

import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch import Tensor

from cifargan.errors import UserError
from cifargan.evaluation.evaluator import Evaluator, Stop, never
from cifargan.evaluation.feature_stats import StoppedError
from cifargan.evaluation.records import FeatureSpace, Protocol, Record, read_file
from cifargan.runs.checkpoint import CheckpointStore, State, load
from cifargan.sampling import BatchNormMode, Sampler
from cifargan.training.early_stopping import ScoreWatch
from cifargan.training.interruption import InterruptedRunError
from cifargan.training.loop import Trainer
from cifargan.training.recovery import DivergedError
from cifargan.training.step import GANStep

TrainerMaker = Callable[..., Trainer]
Differences = Callable[[Any, Any], list[str]]

TWO_CLASSES = 'data.classes=["0","1"]'  # 69 images, so that a short run sees the end of an epoch
EVERYTHING = [
    "model=cdcgan_concat",
    "model.generator.stem_channels=8",
    "model.generator.channels=8",
    "model.generator.spectral_norm=true",
    "model.discriminator.channels=[8,8]",
    "model.discriminator.spectral_norm=true",
    "model.discriminator.dropout=0.3",
    "regularizer=lecam",
    "regularizer.lecam.start=2",
    "augment=diffaugment",
    "trainer.ema.decay=0.9",
    "trainer.ema.start=1",
]
SMALL_BIGGAN = [
    "model.generator.channels=8",
    "model.generator.latent_dim=9",
    "model.generator.class_embedding_dim=4",
    "model.generator.attention=[8]",
    "model.discriminator.channels=8",
    "model.discriminator.attention=[8]",
]
RECIPES = {
    "everything": [*EVERYTHING, "trainer.accumulate=2", "trainer.lr_decay_from=4", "trainer.ema.ramp=0.5"],
    "biggan": ["model=biggan", "loss=hinge_smooth", "regularizer=lecam", *SMALL_BIGGAN, "trainer.d_steps=1"],
    "reacgan": [
        "model=reacgan",
        "loss=hinge",
        *SMALL_BIGGAN,
        "model.discriminator.head.embedding_dim=8",
        "trainer.d_steps=1",
    ],
    "dcgan": [
        "model=cdcgan",
        "model.generator.base_channels=4",
        "model.discriminator.base_channels=4",
        "model.discriminator.dropout=0.3",
        "trainer.ema.decay=0.9",
        "precision=bf16",
    ],
    "wgan": [
        "model=csagan",
        "loss=wasserstein",
        "trainer.d_steps=2",
        "model.generator.stem_channels=8",
        "model.generator.channels=8",
        "model.generator.attention=[8]",
        "model.discriminator.channels=[8,8]",
        "model.discriminator.attention=[8]",
    ],
}
SIMPLE = [
    "model=dcgan_dense",
    "model.generator.stem_channels=4",
    "model.generator.channels=4",
    "model.discriminator.channels=[4,4]",
]


def scalars(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time" and not k.startswith("speed/")} for line in lines]


def last_state(path: Path) -> State:
    """The newest checkpoint but for the configuration, which knows the folder's name."""
    store = CheckpointStore(path / "checkpoints")
    return {key: value for key, value in load(store.find("last")).items() if key != "config"}


def during(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], Any]) -> None:
    """Do something while step `step` is under way."""
    iterate = trainer.gan.iterate

    def wrapped() -> dict[str, Tensor]:
        if trainer.step == step - 1:
            act()
        return iterate()

    monkeypatch.setattr(trainer.gan, "iterate", wrapped)


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


class Scripted(Evaluator):
    """Draws images and gives the scores it was told to, one after the other."""

    monitor = "fd_n4"
    batch_size = 2
    warn_after = 100
    stop_after = None
    target = None

    def __init__(
        self, *scores: float, every: int = 1, act: Callable[[], Any] = lambda: None, last: tuple[float, ...] = ()
    ) -> None:
        self.scores = list(scores)
        self.every = every
        self.act = act
        self.last = list(last)

    def evaluate(self, sampler: Sampler, *, step: int, stop: Stop = never) -> list[Record]:
        self.act()
        return self._look(sampler, self.scores, 4, step)

    def final(self, sampler: Sampler, *, step: int, stop: Stop = never) -> list[Record]:
        if stop():
            raise StoppedError("scoring: stopped after 1 of 8 images")
        return self._look(sampler, self.last, 8, step)

    def _look(self, sampler: Sampler, scores: list[float], n: int, step: int) -> list[Record]:
        assert sampler.sample(n, seed=1).dtype == torch.uint8
        space = FeatureSpace(extractor="none", weights_hash="", resize="", dtype="float32")
        protocol = Protocol(n=n, space=space, subject="training", step=step)
        return [Record(metric="fd", value=scores.pop(0), n=n, protocol=protocol)] if scores else []


# The same bits


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_an_interrupted_run_ends_in_the_same_bits_as_a_straight_one(
    new_trainer: TrainerMaker,
    differences: Differences,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    recipe: str,
) -> None:
    overrides = [*RECIPES[recipe], TWO_CLASSES]
    straight = new_trainer("straight", *overrides)
    straight.fit()
    images_seen = straight.gan.stream.images_seen
    assert images_seen == 8 * 10 * straight.schedule.d_steps > len(straight.images)

    first = new_trainer("resumed", *overrides)
    during(first, monkeypatch, 5, terminate)  # in the middle of a window of 3 steps
    with pytest.raises(InterruptedRunError, match="stopped at step 5, checkpoint written") as error:
        first.fit()
    assert error.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    torch.manual_seed(99)
    second = new_trainer("resumed", *overrides, resume=True)
    assert second.step == 5
    assert second.fit().step == 8

    assert differences(last_state(tmp_path / "straight"), last_state(tmp_path / "resumed")) == []
    assert scalars(tmp_path / "straight") == scalars(tmp_path / "resumed")
    assert [line["step"] for line in scalars(tmp_path / "resumed")] == [3, 6, 8]


def test_the_comparison_above_sees_a_single_draw_too_many(
    new_trainer: TrainerMaker, differences: Differences, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, act in (("a", lambda: None), ("b", lambda: torch.rand(1))):
        trainer = new_trainer(name, *EVERYTHING)
        during(trainer, monkeypatch, 8, act)
        trainer.fit()
    different = differences(last_state(tmp_path / "a"), last_state(tmp_path / "b"))
    parts = {path.split("/")[1] for path in different}
    assert {"generator", "discriminator", "ema", "objective", "g_optimizer", "d_optimizer", "rng"} <= parts


@pytest.mark.parametrize("recipe", ["everything", "biggan"])
def test_deterministic_runs_are_equal_bit_for_bit(
    new_trainer: TrainerMaker, differences: Differences, tmp_path: Path, recipe: str
) -> None:
    for name in ("a", "b"):
        trainer = new_trainer(name, *RECIPES[recipe], "trainer.steps=4", "deterministic=true")
        assert torch.are_deterministic_algorithms_enabled()
        trainer.fit()
        torch.manual_seed(99)
    assert differences(last_state(tmp_path / "a"), last_state(tmp_path / "b")) == []
    assert scalars(tmp_path / "a") == scalars(tmp_path / "b")


def test_another_seed_is_another_run(new_trainer: TrainerMaker, tmp_path: Path) -> None:
    for name in ("1", "2"):
        new_trainer(name, *SIMPLE, f"seed={name}", "trainer.steps=1").fit()
    assert scalars(tmp_path / "1")[0]["loss/discriminator"] != scalars(tmp_path / "2")[0]["loss/discriminator"]


@pytest.mark.parametrize("recipe", ["everything", "biggan"])
def test_training_goes_on_as_if_nobody_had_looked(
    new_trainer: TrainerMaker, differences: Differences, tmp_path: Path, recipe: str
) -> None:
    short = ["trainer.steps=2", "trainer.lr_decay_from=1"]
    quiet = new_trainer("quiet", *RECIPES[recipe], *short)
    quiet.fit()
    expected = quiet.gan.state()
    watched = new_trainer("watched", *RECIPES[recipe], *short, "trainer.sample_every=1")
    watched.scoring.evaluator = Scripted(5.0, 4.0)
    watched.fit()
    assert len(list((tmp_path / "watched" / "samples").glob("step_*.png"))) == 2
    assert watched.best_score == 4.0
    assert differences(expected, watched.gan.state()) == []


# Stopping


def test_a_signal_during_an_evaluation_ends_the_run_with_a_checkpoint_of_that_very_step(
    new_trainer: TrainerMaker,
) -> None:
    trainer = new_trainer("run", *SIMPLE)
    trainer.scoring.evaluator = Scripted(every=3, act=lambda: signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedRunError) as error:
        trainer.fit()
    assert error.value.signal == signal.SIGINT
    assert f"stopped at step {trainer.step}, checkpoint written" in str(error.value)
    assert load(trainer.checkpoints.find("last"))["step"] == trainer.step
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_ctrl_c_ends_it_at_once(new_trainer: TrainerMaker) -> None:
    trainer = new_trainer("run", *SIMPLE)

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    trainer.scoring.evaluator = Scripted(every=3, act=twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()


def poison(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Hand out images that are no numbers in one step."""
    draw = trainer.gan.stream.take
    calls = 0

    def wrapped() -> tuple[Tensor, Tensor]:
        nonlocal calls
        calls += 1
        x, y = draw()
        return (x * torch.nan if calls == step else x), y

    monkeypatch.setattr(trainer.gan.stream, "take", wrapped)


def test_a_diverged_run_names_the_term_the_step_and_the_last_good_checkpoint(
    new_trainer: TrainerMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer("run", *SIMPLE, "trainer.checkpoint_every=2", "trainer.log_every=100")
    poison(trainer, monkeypatch, 5)
    with pytest.raises(DivergedError, match=r"^loss/real is not finite since step 5: ") as error:
        trainer.fit()
    good = trainer.checkpoints.steps()
    assert [path.name for path in good] == ["step_000000002.safetensors", "step_000000004.safetensors"]
    assert f"the last good checkpoint is {good[-1]}" in str(error.value)
    assert "\n" not in str(error.value)
    assert trainer.step == 6
    for path in good:
        state = load(path)
        for part in ("generator", "discriminator", "ema"):
            assert all(value.isfinite().all() for value in state[part].values())


def test_before_the_first_checkpoint_it_says_so(new_trainer: TrainerMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = new_trainer("run", *SIMPLE)
    poison(trainer, monkeypatch, 1)
    with pytest.raises(DivergedError, match=r"since step 1: .*no checkpoint had been written yet"):
        trainer.fit()
    assert trainer.checkpoints.steps() == []


def test_a_diverged_generator_is_never_kept_as_the_best(
    new_trainer: TrainerMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image of NaN is black, and a black image has a score."""
    trainer = new_trainer("run", *SIMPLE, "trainer.log_every=100")
    trainer.scoring.evaluator = Scripted(5.0, 4.0, every=3)
    poison(trainer, monkeypatch, 5)
    with pytest.raises(DivergedError, match="since step 5"):
        trainer.fit()
    assert load(trainer.checkpoints.find("best"))["step"] == 3
    assert [path.name for path in trainer.checkpoints.steps()] == ["step_000000003.safetensors"]


def test_a_generator_that_its_last_update_broke_is_told_by_its_weights(
    new_trainer: TrainerMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer("run", *SIMPLE, "trainer.sample_every=2", "trainer.ema.decay=0")
    iterate = trainer.gan.iterate

    def broken() -> dict[str, Tensor]:
        metrics = iterate()
        with torch.no_grad():
            for parameter in trainer.gan.ema.generator.parameters():
                parameter.fill_(torch.nan)
        return metrics

    monkeypatch.setattr(trainer.gan, "iterate", broken)
    with pytest.raises(DivergedError, match=r"^weights/average is not finite at step 2: "):
        trainer.fit()
    assert trainer.checkpoints.steps() == []


def test_an_interrupted_run_that_has_diverged_keeps_no_checkpoint_of_it(
    new_trainer: TrainerMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer("run", *SIMPLE, "trainer.log_every=100")
    poison(trainer, monkeypatch, 2)
    during(trainer, monkeypatch, 3, terminate)
    with pytest.raises(DivergedError, match="since step 2"):
        trainer.fit()
    assert trainer.checkpoints.steps() == []


# What is kept and shown


def test_the_best_is_the_lowest_score_and_survives_a_resume(new_trainer: TrainerMaker, tmp_path: Path) -> None:
    nan = float("nan")
    trainer = new_trainer("run", *SIMPLE, "trainer.steps=6", "trainer.keep=1")
    trainer.scoring.evaluator = Scripted(nan, 5.0, 7.0, 3.0, nan, 4.0)
    result = trainer.fit()
    assert (result.step, result.best_step, result.best_score) == (6, 4, 3.0)
    assert load(trainer.checkpoints.find("best"))["step"] == 4
    resumed = new_trainer("run", *SIMPLE, "trainer.steps=8", "trainer.keep=1", resume=True)
    resumed.scoring.evaluator = Scripted(3.5, 3.25)
    result = resumed.fit()
    assert (result.step, result.best_step, result.best_score) == (8, 4, 3.0)
    assert load(resumed.checkpoints.find("best"))["step"] == 4
    scores = [(line["step"], line["score/fd_n4"]) for line in scalars(tmp_path / "run") if "score/fd_n4" in line]
    assert scores == [(1, None), (2, 5.0), (3, 7.0), (4, 3.0), (5, None), (6, 4.0), (7, 3.5), (8, 3.25)]


def test_the_final_scores_are_kept_with_all_that_decides_them(new_trainer: TrainerMaker, tmp_path: Path) -> None:
    trainer = new_trainer("run", *SIMPLE, "trainer.steps=4")
    trainer.scoring.evaluator = Scripted(5.0, 6.0, every=2, last=(4.5,))
    result = trainer.fit()
    assert [record.value for record in result.records] == [4.5]
    assert result.best_score == 5.0  # of the comparable ones
    kept = read_file(tmp_path / "run" / "evaluation.json")
    assert [(record["step"], record["n"], record["value"]) for record in kept] == [
        (2, 4, 5.0),
        (4, 4, 6.0),
        (4, 8, 4.5),
    ]
    lines = scalars(tmp_path / "run")
    assert [record for line in lines for record in line.get("records", [])] == kept
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("score/fd_n4")] == [(2, 5.0), (4, 6.0)]
    assert all(0 < event.value < 1 for event in events.Scalars("speed/evaluation_share"))
    assert any("hparams" in tag for tag in events.PluginTagToContent("hparams"))


def test_a_run_that_gets_no_better_ends_early_with_everything_saved(new_trainer: TrainerMaker, tmp_path: Path) -> None:
    trainer = new_trainer("run", *SIMPLE)
    trainer.scoring.evaluator = Scripted(5.0, 6.0, 5.5, 1.0, last=(2.0,))
    trainer.scoring.watch = ScoreWatch(warn_after=9, stop_after=2)
    result = trainer.fit()
    assert (result.step, result.best_step, result.stopped_early) == (3, 1, True)
    assert [record.value for record in result.records] == [2.0]
    assert load(trainer.checkpoints.find("last"))["step"] == 3
    assert load(trainer.checkpoints.find("best"))["step"] == 1


@pytest.mark.parametrize(
    "error",
    [
        UserError("no\nluck"),
        RuntimeError("CUDA out of memory"),
        MemoryError("none left"),
        StoppedError("stopped"),
        LookupError("a bug"),
    ],
)
def test_an_evaluation_that_fails_costs_itself_and_not_the_run(
    new_trainer: TrainerMaker, differences: Differences, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    quiet = new_trainer("quiet", *SIMPLE, "trainer.steps=2")
    quiet.fit()

    def fail() -> None:
        raise error

    trainer = new_trainer("run", *SIMPLE, "trainer.steps=2")
    trainer.scoring.evaluator = Scripted(5.0, act=fail)
    with caplog.at_level(logging.INFO):
        result = trainer.fit()
    assert (result.step, result.best_score) == (2, None)
    assert str(error).splitlines()[0] in caplog.text
    assert ("Traceback" in caplog.text) == isinstance(error, LookupError)
    assert differences(quiet.gan.state(), trainer.gan.state()) == []


def test_a_signal_before_the_final_scores_does_not_wait_for_them(new_trainer: TrainerMaker) -> None:
    trainer = new_trainer("run", *SIMPLE, "trainer.steps=2")
    trainer.scoring.evaluator = Scripted(every=2, act=terminate, last=(1.0,))
    with pytest.raises(InterruptedRunError, match=r"trained to step 2, checkpoint written; the final scores") as error:
        trainer.fit()
    assert error.value.signal == signal.SIGTERM
    assert load(trainer.checkpoints.find("last"))["step"] == 2


def test_real_evaluations_leave_no_trace_in_the_training(new_trainer: TrainerMaker, differences: Differences) -> None:
    """Bit for bit: the weights, averages, optimisers, buffers, data order and random numbers."""
    overrides = [*EVERYTHING, "trainer.steps=3", "data.image_size=16"]
    quiet = new_trainer("quiet", *overrides)
    quiet.fit()
    scored = new_trainer(
        "scored",
        *(override for override in overrides),
        *("evaluator=efficientnet_lite0", "evaluator.resolution=32", "evaluator.every=1", "evaluator.samples=12"),
        *("evaluator.final_samples=20", "evaluator.full=true"),
    )
    result = scored.fit()
    assert differences(quiet.gan.state(), scored.gan.state()) == []
    keys = [record.key for record in result.records if record.class_name is None]
    assert "fd_lite0_32_n20_train" in keys
    assert "precision_lite0_32_n20_test" in keys
    assert result.best_score is not None


def test_a_run_without_an_evaluator_has_no_best(new_trainer: TrainerMaker) -> None:
    trainer = new_trainer("run", *SIMPLE, "trainer.steps=1")
    result = trainer.fit()
    assert (result.step, result.best_step, result.best_score) == (1, None, None)
    with pytest.raises(UserError, match=r"there are 1$"):
        trainer.checkpoints.find("best")


def test_what_is_logged_is_the_mean_over_the_window(
    new_trainer: TrainerMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = new_trainer("run", *EVERYTHING, "trainer.steps=7", "trainer.log_every=4", "trainer.lr_decay_from=0")
    seen: list[dict[str, float]] = []
    iterate = trainer.gan.iterate

    def wrapped() -> dict[str, Tensor]:
        metrics = iterate()
        seen.append({name: float(value) for name, value in metrics.items()})
        return metrics

    monkeypatch.setattr(trainer.gan, "iterate", wrapped)
    trainer.fit()
    first, last = scalars(tmp_path / "run")
    assert (first["step"], last["step"]) == (4, 7)
    for line, window in ((first, seen[:4]), (last, seen[4:])):
        for name in window[0]:
            mean = sum(values[name] for values in window) / len(window)
            assert line[name] == pytest.approx(mean, rel=1e-4, abs=1e-6), name
    # The rate of the last update, which was counted from 0.
    assert last["learning_rate/generator"] == pytest.approx(2e-4 * (1 - 6 / 7))
    assert last["progress/epoch"] == 0


def test_a_run_ends_with_a_log_a_grid_and_a_checkpoint(new_trainer: TrainerMaker, tmp_path: Path) -> None:
    trainer = new_trainer("run", *SIMPLE, "trainer.steps=3")
    trainer.fit()
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == ["reals.png", "step_000000003.png"]
    assert [path.name for path in trainer.checkpoints.steps()] == ["step_000000003.safetensors"]
    assert [line["step"] for line in scalars(tmp_path / "run")] == [3]
    state = load(trainer.checkpoints.find("last"))
    assert state["classes"] == [str(digit) for digit in range(10)]
    assert state["config"]["trainer"]["steps"] == 3


def test_a_grid_has_a_row_for_each_class(new_trainer: TrainerMaker, tmp_path: Path) -> None:
    trainer = new_trainer("run", *EVERYTHING, TWO_CLASSES, "trainer.steps=1", "trainer.samples_per_class=3")
    trainer.fit()
    with Image.open(tmp_path / "run" / "samples" / "step_000000001.png") as picture:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    side, padding = 16, 2
    assert pixels.shape == (3, padding + 2 * (side + padding), padding + 3 * (side + padding))
    for row, name in enumerate(trainer.images.classes):
        expected = trainer.sampler().sample(3, classes=[name], seed=0)
        for column in range(3):
            top, left = (padding + index * (side + padding) for index in (row, column))
            cell = pixels[:, top : top + side, left : left + side].int()
            assert (cell - expected[column].int()).abs().max() <= 1  # the batches differ, and so does the rounding


@pytest.mark.parametrize("mode", ["standing", "running"])
def test_the_batch_norm_of_a_grid_is_as_set(
    mode: BatchNormMode, new_trainer: TrainerMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer("run", *RECIPES["dcgan"], f"trainer.sample_batch_norm={mode}", "trainer.samples_per_class=1")
    drawn: list[Tensor] = []
    monkeypatch.setattr(trainer.watch, "look_at_samples", lambda images, _: drawn.append(images))
    trainer.fit()
    grids = {
        name: trainer.sampler(standing_batches=4, batch_norm=name).sample(10, seed=0)
        for name in get_args(BatchNormMode)
    }
    assert [name for name, images in grids.items() if torch.equal(images, drawn[-1])] == [mode]


def test_what_is_shown_and_scored_are_the_averaged_weights(new_trainer: TrainerMaker) -> None:
    trainer = new_trainer("run", *SIMPLE)
    with trainer.tracker, torch.no_grad():
        for parameter in trainer.gan.ema.generator.parameters():
            parameter.zero_()
    images = trainer.sampler().sample(3, seed=0)
    assert torch.equal(images, torch.full_like(images, 128))
    assert any(parameter.any() for parameter in trainer.gan.generator.parameters())


def full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_checkpoint_that_cannot_be_written_is_tried_again_and_costs_nothing(
    new_trainer: TrainerMaker,
    differences: Differences,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    new_trainer("quiet", *SIMPLE, "trainer.checkpoint_every=2", "trainer.log_every=1").fit()
    trainer = new_trainer("run", *SIMPLE, "trainer.checkpoint_every=2", "trainer.log_every=1")
    sync = os.fsync
    during(trainer, monkeypatch, 4, lambda: monkeypatch.setattr(os, "fsync", full))
    during(trainer, monkeypatch, 5, lambda: trainer.checkpoints.find("last").stat().st_size)
    during(trainer, monkeypatch, 6, lambda: monkeypatch.setattr(os, "fsync", sync))
    assert trainer.fit().step == 8
    warnings = [record.getMessage() for record in caplog.records if "checkpoint" in record.getMessage()]
    assert [line.split(":")[0] for line in warnings] == ["step 4", "step 5"]
    assert "step_000000004.safetensors: No space left on device; what was there before is untouched" in warnings[0]
    assert all("the last good checkpoint is" in line and "step_000000002.safetensors" in line for line in warnings)
    assert differences(last_state(tmp_path / "quiet"), last_state(tmp_path / "run")) == []
    assert [path.name for path in trainer.checkpoints.steps()] == [
        "step_000000006.safetensors",
        "step_000000008.safetensors",
    ]


def test_a_last_checkpoint_that_cannot_be_written_is_an_error_that_names_the_last_good_one(
    new_trainer: TrainerMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer("run", *SIMPLE, "trainer.checkpoint_every=2")
    during(trainer, monkeypatch, 8, lambda: monkeypatch.setattr(os, "fsync", full))
    with pytest.raises(
        UserError, match=r"the last checkpoint, of step 8, is lost: could not write .*No space"
    ) as error:
        trainer.fit()
    assert "the last good checkpoint is " in str(error.value)
    assert str(error.value).endswith("step_000000006.safetensors")
    assert "\n" not in str(error.value)
    assert load(trainer.checkpoints.find("last"))["step"] == 6


# Going back


def test_a_weight_that_is_no_number_is_seen_at_the_next_log_point(
    new_trainer: TrainerMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last update of a window breaks what no term shows yet."""
    for name, network in (("generator", "gan.generator"), ("discriminator", "gan.discriminator")):
        trainer = new_trainer(name, *SIMPLE, "trainer.log_every=3", "trainer.ema.decay=0.9")
        weight = next(getattr(trainer.gan, network.split(".")[1]).parameters())
        update = trainer.gan.ema.update

        def broken(trainer: Trainer = trainer, weight: Tensor = weight, update: Callable[[], None] = update) -> None:
            if trainer.step == 5:
                with torch.no_grad():
                    weight[(0,) * weight.dim()] = torch.inf
            update()

        monkeypatch.setattr(trainer.gan.ema, "update", broken)
        with pytest.raises(DivergedError, match=rf"^weights/{name} is not finite at step 6: the run has diverged; no "):
            trainer.fit()
        assert trainer.checkpoints.steps() == []


ROLLBACK = ("trainer.checkpoint_every=2", "trainer.log_every=1", "trainer.on_divergence=rollback")


def test_a_run_that_diverges_goes_back_with_lower_rates_and_new_noise(
    new_trainer: TrainerMaker,
    differences: Differences,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer = new_trainer("run", *SIMPLE, *ROLLBACK)
    trainer.tracker.directory.add_provenance(seed=0)
    poison(trainer, monkeypatch, 6)  # its fifth step draws it, and again the sixth after the first rollback
    during(trainer, monkeypatch, 5, lambda: None)
    assert trainer.fit().step == 8
    lines = scalars(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 9))  # none twice
    rates = [line["learning_rate/generator"] for line in lines]
    assert rates == pytest.approx([2e-4] * 4 + [1e-4] * 4)
    assert "is not finite since step 6: back to step 4 with new noise and learning rates x 0.5" in caplog.text
    (session,) = trainer.tracker.directory.read_json("provenance.json")["sessions"]
    (event,) = session["events"]
    assert (event["what"], event["step"], event["to"], event["rate_scale"]) == ("rollback", 6, 4, 0.5)
    assert trainer.recovered() == {"rollbacks": 1, "rate_scale": 0.5}
    state = last_state(tmp_path / "run")
    assert (state["rollbacks"], state["rate_scale"]) == (1, 0.5)
    for part in ("generator", "discriminator", "ema"):
        assert all(value.isfinite().all() for value in state[part].values())
    # A resumed run keeps the lowered rates, and goes on in the same bits.
    longer = new_trainer("run", *SIMPLE, *ROLLBACK, "trainer.steps=10", resume=True)
    longer.fit()
    assert (longer.rollbacks, scalars(tmp_path / "run")[-1]["learning_rate/generator"]) == (1, pytest.approx(1e-4))

    # The noise is another: the first update after the rollback is not the one that was made before.
    straight = new_trainer("straight", *SIMPLE, *ROLLBACK, "optimizer.generator.lr=2e-4")
    straight.fit()
    assert scalars(tmp_path / "straight")[4]["loss/discriminator"] != lines[4]["loss/discriminator"]
    assert scalars(tmp_path / "straight")[3] == lines[3]


def test_a_rollback_that_was_just_made_survives_a_kill(
    new_trainer: TrainerMaker, differences: Differences, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("straight", "killed"):
        trainer = new_trainer(name, *SIMPLE, *ROLLBACK)
        poison(trainer, monkeypatch, 6)
        if name == "killed":
            roll_back = trainer._roll_back

            def die(error: DivergedError, roll_back: Callable[[DivergedError], None] = roll_back) -> None:
                roll_back(error)
                raise SystemExit(9)

            monkeypatch.setattr(trainer, "_roll_back", die)
            with pytest.raises(SystemExit):
                trainer.fit()
            assert last_state(tmp_path / name)["step"] == 4
            trainer = new_trainer(name, *SIMPLE, *ROLLBACK, resume=True)
        trainer.fit()
    assert differences(last_state(tmp_path / "straight"), last_state(tmp_path / "killed")) == []
    assert scalars(tmp_path / "straight") == scalars(tmp_path / "killed")


def test_a_run_that_always_diverges_stops_after_so_many_rollbacks(
    new_trainer: TrainerMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer("run", *SIMPLE, *ROLLBACK, "trainer.max_rollbacks=2")
    take = trainer.gan.stream.take
    monkeypatch.setattr(trainer.gan.stream, "take", lambda: (take()[0] * torch.nan, take()[1]))
    with pytest.raises(
        DivergedError, match=r"^2 rollbacks have not helped \(trainer.max_rollbacks\): loss/real"
    ) as error:
        trainer.fit()
    assert "\n" not in str(error.value)
    state = load(trainer.checkpoints.find("last"))
    assert (state["step"], state["rollbacks"], state["rate_scale"]) == (0, 2, 0.25)


# Memory


def out_of_memory(gan: GANStep, monkeypatch: pytest.MonkeyPatch, place: str, fitting: int) -> None:
    """Let memory run out, deep in one update, as long as micro-batches are larger than `fitting`."""
    owner, name = {
        "discriminator": (gan.objective.penalties.lecam, "forward"),
        "generator": (gan.objective.loss, "generator"),
        "optimizer": (gan.g_optimizer, "step"),
    }[place]
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)  # after it has moved its averages, or the weights
        if gan.schedule.micro_batch > fitting:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nand more lines")
        return result

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.parametrize("place", ["discriminator", "generator", "optimizer"])
def test_accumulate_auto_is_decided_by_a_trial_that_leaves_no_trace(
    new_trainer: TrainerMaker,
    differences: Differences,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    place: str,
) -> None:
    """Bit for bit what comes of giving the number of parts by hand."""
    failing = new_trainer("failing", *EVERYTHING, "trainer.accumulate=auto")
    failing.tracker.directory.add_provenance(seed=0)
    out_of_memory(failing.gan, monkeypatch, place, 5)
    assert failing.fit().step == 8
    assert failing.gan.schedule.accumulate == failing.schedule.accumulate == 2
    assert failing.recovered() == {"accumulate": 2}
    assert "the batch of 10 is taken in 2 parts of 5" in caplog.text
    (session,) = failing.tracker.directory.read_json("provenance.json")["sessions"]
    assert [event["accumulate"] for event in session["events"]] == [2]

    new_trainer("byhand", *EVERYTHING, "trainer.accumulate=2").fit()
    found = differences(last_state(tmp_path / "byhand"), last_state(tmp_path / "failing"))
    assert [line for line in found if not line.startswith("/config/")] == []
    assert scalars(tmp_path / "byhand") == scalars(tmp_path / "failing")

    again = new_trainer("failing", *EVERYTHING, "trainer.accumulate=auto", "trainer.steps=9", resume=True)
    assert again.schedule.micro_batch == again.gan.stream.batch_size == 5
    again.fit()


def test_out_of_memory_with_single_images_or_a_fixed_number_of_parts_is_an_error(
    new_trainer: TrainerMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, parts in (("fixed", "1"), ("auto", "auto")):
        trainer = new_trainer(name, *SIMPLE, f"trainer.accumulate={parts}")

        def never_enough(*_: Any) -> None:
            raise MemoryError

        monkeypatch.setattr(trainer.gan.objective.loss, "discriminator", never_enough)
        with pytest.raises(MemoryError):
            trainer.fit()
        assert trainer.gan.schedule.accumulate == (1 if name == "fixed" else 10)


def test_a_grid_that_does_not_fit_costs_itself(
    new_trainer: TrainerMaker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Sampler, "sample", no_memory)
    assert new_trainer("run", *SIMPLE, "trainer.sample_every=4").fit().step == 8
    assert "step 4: no sample grid (out of memory); training continues" in caplog.text


# States of others


def test_a_checkpoint_of_other_data_is_refused(new_trainer: TrainerMaker) -> None:
    trainer = new_trainer("run", *SIMPLE, "trainer.steps=1")
    trainer.fit()
    state = load(trainer.checkpoints.find("last"))
    for name, override, message in (
        ("classes", TWO_CLASSES, "the checkpoint has the classes"),
        ("images", "data.splits=[train]", "the training images are not those"),
    ):
        other = new_trainer(name, *SIMPLE, override)
        with other.tracker, pytest.raises(UserError, match=message) as error:
            other.load_state(state)
        assert "\n" not in str(error.value)


def test_the_means_go_back_to_the_device_of_the_gan(new_trainer: TrainerMaker) -> None:
    trainer = new_trainer("run", *SIMPLE, "trainer.steps=1")
    trainer.fit()
    state = load(trainer.checkpoints.find("last"))
    trainer.gan.device = torch.device("meta")  # stands in for a GPU
    trainer.load_state(state)
    assert trainer.running.total.device.type == "meta"
    assert trainer.running.first_bad_step.device.type == "meta"


def test_a_finished_run_has_nothing_left_to_do(new_trainer: TrainerMaker) -> None:
    trainer = new_trainer("run", *SIMPLE, "trainer.steps=2")
    trainer.watch.warned = ["samples"]
    trainer.fit()
    again = new_trainer("run", *SIMPLE, "trainer.steps=2", resume=True)
    assert again.watch.warned == ["samples"]  # what has been said is not said again
    written = again.tracker.directory.metrics.read_bytes()
    assert again.fit().step == 2
    assert again.tracker.directory.metrics.read_bytes() == written
