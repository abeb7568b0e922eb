"""The whole loop: runs resume with the same bits, stop when they must, and keep what they should."""

import itertools
import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass
class Runs:
    """The runs of one test, each in a folder of its own: opens them, disturbs them, reads what they leave."""

    new_trainer: Callable[..., Trainer]
    differences: Callable[[Any, Any], list[str]]
    patch: pytest.MonkeyPatch
    folder: Path

    def open(self, name: str, *overrides: str, resume: bool = False, scores: "Scripted | None" = None) -> Trainer:
        """The trainer of a run, with the given scores."""
        trainer = self.new_trainer(name, *overrides, resume=resume)
        if scores is not None:
            trainer.scoring.evaluator = scores
        return trainer

    def scalars(self, name: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl without what depends on the clock."""
        lines = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k != "time" and not k.startswith("speed/")} for line in lines]

    def last_state(self, name: str) -> State:
        """The newest checkpoint without the configuration, which names the folder."""
        store = CheckpointStore(self.folder / name / "checkpoints")
        return {key: value for key, value in load(store.find("last")).items() if key != "config"}

    def differing(self, a: str, b: str) -> list[str]:
        """Where the last states of two runs differ."""
        return self.differences(self.last_state(a), self.last_state(b))

    def assert_same_bits(self, a: str, b: str) -> None:
        """Two runs end in the same state and have logged the same figures."""
        assert self.differing(a, b) == []
        assert self.scalars(a) == self.scalars(b)

    def during(self, trainer: Trainer, step: int, act: Callable[[], Any]) -> None:
        """Do something at the start of step `step`."""
        iterate = trainer.gan.iterate

        def wrapped() -> dict[str, Tensor]:
            if trainer.step == step - 1:
                act()
            return iterate()

        self.patch.setattr(trainer.gan, "iterate", wrapped)

    def poison(self, trainer: Trainer, draw: int) -> None:
        """Make the images of one draw NaN."""
        take, draws = trainer.gan.stream.take, itertools.count(1)

        def wrapped() -> tuple[Tensor, Tensor]:
            x, y = take()
            return (x * torch.nan if next(draws) == draw else x), y

        self.patch.setattr(trainer.gan.stream, "take", wrapped)


@pytest.fixture
def runs(
    new_trainer: Callable[..., Trainer],
    differences: Callable[[Any, Any], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Runs:
    """The runs of this test."""
    return Runs(new_trainer, differences, monkeypatch, tmp_path)


def checkpoints(trainer: Trainer) -> list[int]:
    """The steps of the checkpoints on disk."""
    return [int(path.stem.removeprefix("step_")) for path in trainer.checkpoints.steps()]


def assert_finite(state: State) -> None:
    for part in ("generator", "discriminator", "ema"):
        assert all(value.isfinite().all() for value in state[part].values())


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


class Scripted(Evaluator):
    """Draws images and gives scores that are known beforehand, one after the other."""

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
def test_an_interrupted_run_ends_in_the_same_bits_as_a_straight_one(runs: Runs, recipe: str) -> None:
    overrides = [*RECIPES[recipe], TWO_CLASSES]
    straight = runs.open("straight", *overrides)
    straight.fit()
    images_seen = straight.gan.stream.images_seen
    assert images_seen == 8 * 10 * straight.schedule.d_steps > len(straight.images)

    first = runs.open("resumed", *overrides)
    runs.during(first, 5, terminate)  # in the middle of a window of 3 steps
    with pytest.raises(InterruptedRunError, match="stopped at step 5, checkpoint written") as error:
        first.fit()
    assert error.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    torch.manual_seed(99)
    second = runs.open("resumed", *overrides, resume=True)
    assert second.step == 5
    assert second.fit().step == 8
    runs.assert_same_bits("straight", "resumed")
    assert [line["step"] for line in runs.scalars("resumed")] == [3, 6, 8]


def test_the_comparison_above_sees_a_single_draw_too_many(runs: Runs) -> None:
    for name, act in (("a", lambda: None), ("b", lambda: torch.rand(1))):
        trainer = runs.open(name, *EVERYTHING, "trainer.steps=3")
        runs.during(trainer, 3, act)
        trainer.fit()
    parts = {path.split("/")[1] for path in runs.differing("a", "b")}
    assert {"generator", "discriminator", "ema", "objective", "g_optimizer", "d_optimizer", "rng"} <= parts


@pytest.mark.parametrize("recipe", ["everything", "biggan"])
def test_deterministic_runs_are_equal_bit_for_bit(runs: Runs, recipe: str) -> None:
    for name in ("a", "b"):
        trainer = runs.open(name, *RECIPES[recipe], "trainer.steps=4", "deterministic=true")
        assert torch.are_deterministic_algorithms_enabled()
        trainer.fit()
        torch.manual_seed(99)
    runs.assert_same_bits("a", "b")


def test_another_seed_is_another_run(runs: Runs) -> None:
    for seed in ("1", "2"):
        runs.open(seed, *SIMPLE, f"seed={seed}", "trainer.steps=1").fit()
    first, second = (runs.scalars(seed)[0]["loss/discriminator"] for seed in ("1", "2"))
    assert first != second


@pytest.mark.parametrize("recipe", ["everything", "biggan"])
def test_grids_and_scores_do_not_change_the_training(runs: Runs, recipe: str) -> None:
    short = ["trainer.steps=2", "trainer.lr_decay_from=1"]
    quiet = runs.open("quiet", *RECIPES[recipe], *short)
    quiet.fit()
    watched = runs.open("watched", *RECIPES[recipe], *short, "trainer.sample_every=1", scores=Scripted(5.0, 4.0))
    watched.fit()
    assert len(list((runs.folder / "watched" / "samples").glob("step_*.png"))) == 2
    assert watched.best_score == 4.0
    assert runs.differences(quiet.gan.state(), watched.gan.state()) == []


# Stopping


def test_a_signal_during_an_evaluation_ends_the_run_with_a_checkpoint_of_that_very_step(runs: Runs) -> None:
    interrupt = Scripted(every=3, act=lambda: signal.raise_signal(signal.SIGINT))
    trainer = runs.open("run", *SIMPLE, scores=interrupt)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(InterruptedRunError) as error:
        trainer.fit()
    assert error.value.signal == signal.SIGINT
    assert f"stopped at step {trainer.step}, checkpoint written" in str(error.value)
    assert load(trainer.checkpoints.find("last"))["step"] == trainer.step
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_ctrl_c_ends_it_at_once(runs: Runs) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        runs.open("run", *SIMPLE, scores=Scripted(every=3, act=twice)).fit()


def test_a_diverged_run_names_the_term_the_step_and_the_last_good_checkpoint(runs: Runs) -> None:
    trainer = runs.open("run", *SIMPLE, "trainer.checkpoint_every=2", "trainer.log_every=100")
    runs.poison(trainer, 5)
    with pytest.raises(DivergedError, match=r"^loss/real is not finite since step 5: ") as error:
        trainer.fit()
    assert checkpoints(trainer) == [2, 4]
    assert f"the last good checkpoint is {trainer.checkpoints.steps()[-1]}" in str(error.value)
    assert "\n" not in str(error.value)
    assert trainer.step == 6
    for path in trainer.checkpoints.steps():
        assert_finite(load(path))


@pytest.mark.parametrize(
    ("draw", "stop", "message"), [(1, 9, r"since step 1: .*no checkpoint had been written yet"), (2, 3, "since step 2")]
)
def test_a_run_that_diverges_early_or_is_interrupted_keeps_no_checkpoint(
    runs: Runs, draw: int, stop: int, message: str
) -> None:
    trainer = runs.open("run", *SIMPLE, "trainer.log_every=100")
    runs.poison(trainer, draw)
    runs.during(trainer, stop, terminate)
    with pytest.raises(DivergedError, match=message):
        trainer.fit()
    assert checkpoints(trainer) == []


def test_a_diverged_generator_is_never_kept_as_the_best(runs: Runs) -> None:
    """An image of NaN is black, and a black image has a score."""
    trainer = runs.open("run", *SIMPLE, "trainer.log_every=100", scores=Scripted(5.0, 4.0, every=3))
    runs.poison(trainer, 5)
    with pytest.raises(DivergedError, match="since step 5"):
        trainer.fit()
    assert load(trainer.checkpoints.find("best"))["step"] == 3
    assert checkpoints(trainer) == [3]


@pytest.mark.parametrize(
    ("name", "decay", "step", "seen"),
    [("average", 0, 1, 2), ("generator", 0.9, 5, 6), ("discriminator", 0.9, 5, 6)],
)
def test_weights_that_are_not_finite_are_seen_at_the_next_grid_or_log_point(
    runs: Runs, name: str, decay: float, step: int, seen: int
) -> None:
    """The last update of a window breaks what no term shows yet."""
    every = "trainer.sample_every=2" if name == "average" else "trainer.log_every=3"
    trainer = runs.open("run", *SIMPLE, every, f"trainer.ema.decay={decay}")
    gan = trainer.gan
    network = gan.ema.generator if name == "average" else getattr(gan, name)
    weight, update = next(network.parameters()), gan.ema.update

    def damage() -> None:
        if trainer.step == step:
            with torch.no_grad():
                weight[(0,) * weight.dim()] = torch.inf

    def broken() -> None:
        parts = [update, damage] if name == "average" else [damage, update]
        for part in parts:
            part()

    runs.patch.setattr(gan.ema, "update", broken)
    with pytest.raises(
        DivergedError, match=rf"^weights/{name} is not finite at step {seen}: the run has diverged; no "
    ):
        trainer.fit()
    assert checkpoints(trainer) == []


# What is kept and shown


def test_the_best_is_the_lowest_score_and_survives_a_resume(runs: Runs) -> None:
    nan = float("nan")
    settings = (*SIMPLE, "trainer.keep=1")
    trainer = runs.open("run", *settings, "trainer.steps=6", scores=Scripted(nan, 5.0, 7.0, 3.0, nan, 4.0))
    result = trainer.fit()
    assert (result.step, result.best_step, result.best_score) == (6, 4, 3.0)
    assert load(trainer.checkpoints.find("best"))["step"] == 4
    resumed = runs.open("run", *settings, "trainer.steps=8", resume=True, scores=Scripted(3.5, 3.25))
    result = resumed.fit()
    assert (result.step, result.best_step, result.best_score) == (8, 4, 3.0)
    assert load(resumed.checkpoints.find("best"))["step"] == 4
    scores = [(line["step"], line["score/fd_n4"]) for line in runs.scalars("run") if "score/fd_n4" in line]
    assert scores == [(1, None), (2, 5.0), (3, 7.0), (4, 3.0), (5, None), (6, 4.0), (7, 3.5), (8, 3.25)]


def test_the_final_scores_are_kept_with_all_that_decides_them(runs: Runs) -> None:
    folder = runs.folder / "run"
    result = runs.open("run", *SIMPLE, "trainer.steps=4", scores=Scripted(5.0, 6.0, every=2, last=(4.5,))).fit()
    assert [record.value for record in result.records] == [4.5]
    assert result.best_score == 5.0  # of the comparable ones
    kept = read_file(folder / "evaluation.json")
    found = [(record["step"], record["n"], record["value"]) for record in kept]
    assert found == [(2, 4, 5.0), (4, 4, 6.0), (4, 8, 4.5)]
    assert [record for line in runs.scalars("run") for record in line.get("records", [])] == kept
    events = EventAccumulator(str(folder)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("score/fd_n4")] == [(2, 5.0), (4, 6.0)]
    assert all(0 < event.value < 1 for event in events.Scalars("speed/evaluation_share"))
    assert any("hparams" in tag for tag in events.PluginTagToContent("hparams"))


def test_a_run_that_gets_no_better_ends_early_with_everything_saved(runs: Runs) -> None:
    trainer = runs.open("run", *SIMPLE, scores=Scripted(5.0, 6.0, 5.5, 1.0, last=(2.0,)))
    trainer.scoring.watch = ScoreWatch(warn_after=9, stop_after=2)
    result = trainer.fit()
    assert (result.step, result.best_step, result.stopped_early) == (3, 1, True)
    assert [record.value for record in result.records] == [2.0]
    assert load(trainer.checkpoints.find("last"))["step"] == 3
    assert load(trainer.checkpoints.find("best"))["step"] == 1


def test_an_evaluation_that_fails_costs_itself_and_not_the_run(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    short = (*SIMPLE, "trainer.steps=2")
    quiet = runs.open("quiet", *short)
    quiet.fit()
    errors = [
        UserError("no\nluck"),
        RuntimeError("CUDA out of memory"),
        MemoryError("none left"),
        StoppedError("stopped"),
        LookupError("a bug"),
    ]
    for number, error in enumerate(errors):

        def fail(error: Exception = error) -> None:
            raise error

        trainer = runs.open(str(number), *short, scores=Scripted(5.0, act=fail))
        caplog.clear()
        with caplog.at_level(logging.INFO):
            result = trainer.fit()
        assert (result.step, result.best_score) == (2, None)
        assert str(error).splitlines()[0] in caplog.text
        assert ("Traceback" in caplog.text) == isinstance(error, LookupError)
        assert runs.differences(quiet.gan.state(), trainer.gan.state()) == []


def test_a_signal_before_the_final_scores_does_not_wait_for_them(runs: Runs) -> None:
    trainer = runs.open("run", *SIMPLE, "trainer.steps=2", scores=Scripted(every=2, act=terminate, last=(1.0,)))
    with pytest.raises(InterruptedRunError, match=r"trained to step 2, checkpoint written; the final scores") as error:
        trainer.fit()
    assert error.value.signal == signal.SIGTERM
    assert load(trainer.checkpoints.find("last"))["step"] == 2


def test_real_evaluations_leave_no_trace_in_the_training(runs: Runs) -> None:
    """Bit for bit: the weights, averages, optimisers, buffers, data order and random numbers."""
    short = (*EVERYTHING, TWO_CLASSES, "trainer.steps=3")
    quiet = runs.open("quiet", *short)
    quiet.fit()
    scored = runs.open(
        *("scored", *short, "evaluator=efficientnet_lite0", "evaluator.resolution=32"),
        *("evaluator.every=1", "evaluator.samples=12", "evaluator.final_samples=20", "evaluator.full=true"),
    )
    result = scored.fit()
    assert runs.differences(quiet.gan.state(), scored.gan.state()) == []
    keys = [record.key for record in result.records if record.class_name is None]
    assert "fd_lite0_32_n20_train" in keys
    assert "precision_lite0_32_n20_test" in keys
    assert result.best_score is not None


def test_what_is_logged_is_the_mean_over_the_window(runs: Runs) -> None:
    trainer = runs.open("run", *EVERYTHING, "trainer.steps=7", "trainer.log_every=4", "trainer.lr_decay_from=0")
    seen: list[dict[str, float]] = []
    iterate = trainer.gan.iterate

    def wrapped() -> dict[str, Tensor]:
        metrics = iterate()
        seen.append({name: float(value) for name, value in metrics.items()})
        return metrics

    runs.patch.setattr(trainer.gan, "iterate", wrapped)
    trainer.fit()
    first, last = runs.scalars("run")
    assert (first["step"], last["step"]) == (4, 7)
    for line, window in ((first, seen[:4]), (last, seen[4:])):
        for name in window[0]:
            mean = sum(values[name] for values in window) / len(window)
            assert line[name] == pytest.approx(mean, rel=1e-4, abs=1e-6), name
    # The rate of the last update, which was counted from 0.
    assert last["learning_rate/generator"] == pytest.approx(2e-4 * (1 - 6 / 7))
    assert last["progress/epoch"] == 0


def test_a_run_ends_with_a_log_a_grid_and_a_checkpoint_and_has_no_best_without_scores(runs: Runs) -> None:
    trainer = runs.open("run", *SIMPLE, "trainer.steps=3")
    result = trainer.fit()
    assert (result.step, result.best_step, result.best_score) == (3, None, None)
    grids = sorted(path.name for path in (runs.folder / "run" / "samples").iterdir())
    assert grids == ["reals.png", "step_000000003.png"]
    assert checkpoints(trainer) == [3]
    assert [line["step"] for line in runs.scalars("run")] == [3]
    state = load(trainer.checkpoints.find("last"))
    assert state["classes"] == [str(digit) for digit in range(10)]
    assert state["config"]["trainer"]["steps"] == 3
    with pytest.raises(UserError, match=r"there are 3$"):
        trainer.checkpoints.find("best")


def test_a_grid_has_a_row_for_each_class(runs: Runs) -> None:
    trainer = runs.open("run", *EVERYTHING, TWO_CLASSES, "trainer.steps=1", "trainer.samples_per_class=3")
    trainer.fit()
    with Image.open(runs.folder / "run" / "samples" / "step_000000001.png") as picture:
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
def test_the_batch_norm_of_a_grid_is_as_set(mode: BatchNormMode, runs: Runs) -> None:
    short = ("trainer.steps=2", "trainer.samples_per_class=1")
    trainer = runs.open("run", *RECIPES["dcgan"], f"trainer.sample_batch_norm={mode}", *short)
    drawn: list[Tensor] = []
    runs.patch.setattr(trainer.watch, "look_at_samples", lambda images, _: drawn.append(images))
    trainer.fit()
    grids = {
        name: trainer.sampler(standing_batches=4, batch_norm=name).sample(10, seed=0)
        for name in get_args(BatchNormMode)
    }
    assert [name for name, images in grids.items() if torch.equal(images, drawn[-1])] == [mode]


def test_what_is_shown_and_scored_are_the_averaged_weights(runs: Runs) -> None:
    trainer = runs.open("run", *SIMPLE)
    with trainer.tracker, torch.no_grad():
        for parameter in trainer.gan.ema.generator.parameters():
            parameter.zero_()
    images = trainer.sampler().sample(3, seed=0)
    assert torch.equal(images, torch.full_like(images, 128))
    assert any(parameter.any() for parameter in trainer.gan.generator.parameters())


def full(descriptor: int) -> None:
    raise OSError(28, "No space left on device")


def test_a_checkpoint_that_cannot_be_written_is_tried_again_and_costs_nothing(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    settings = (*SIMPLE, "trainer.checkpoint_every=2", "trainer.log_every=1")
    runs.open("quiet", *settings).fit()
    trainer = runs.open("run", *settings)
    sync = os.fsync
    runs.during(trainer, 4, lambda: runs.patch.setattr(os, "fsync", full))
    runs.during(trainer, 5, lambda: trainer.checkpoints.find("last").stat().st_size)
    runs.during(trainer, 6, lambda: runs.patch.setattr(os, "fsync", sync))
    assert trainer.fit().step == 8
    warnings = [record.getMessage() for record in caplog.records if "checkpoint" in record.getMessage()]
    assert [line.split(":")[0] for line in warnings] == ["step 4", "step 5"]
    assert "step_000000004.safetensors: No space left on device; what was there before is untouched" in warnings[0]
    assert all("the last good checkpoint is" in line and "step_000000002.safetensors" in line for line in warnings)
    assert runs.differing("quiet", "run") == []
    assert checkpoints(trainer) == [6, 8]


def test_a_last_checkpoint_that_cannot_be_written_is_an_error_that_names_the_last_good_one(runs: Runs) -> None:
    trainer = runs.open("run", *SIMPLE, "trainer.checkpoint_every=2")
    runs.during(trainer, 8, lambda: runs.patch.setattr(os, "fsync", full))
    with pytest.raises(
        UserError, match=r"the last checkpoint, of step 8, is lost: could not write .*No space"
    ) as error:
        trainer.fit()
    assert "the last good checkpoint is " in str(error.value)
    assert str(error.value).endswith("step_000000006.safetensors")
    assert "\n" not in str(error.value)
    assert load(trainer.checkpoints.find("last"))["step"] == 6


# Rollback


ROLLBACK = (*SIMPLE, "trainer.checkpoint_every=2", "trainer.log_every=1", "trainer.on_divergence=rollback")


def test_a_run_that_diverges_goes_back_with_lower_rates_and_new_noise(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = runs.open("run", *ROLLBACK)
    trainer.tracker.directory.add_provenance(seed=0)
    runs.poison(trainer, 6)
    assert trainer.fit().step == 8
    lines = runs.scalars("run")
    assert [line["step"] for line in lines] == list(range(1, 9))  # none twice
    rates = [line["learning_rate/generator"] for line in lines]
    assert rates == pytest.approx([2e-4] * 4 + [1e-4] * 4)
    assert "is not finite since step 6: back to step 4 with new noise and learning rates x 0.5" in caplog.text
    (session,) = trainer.tracker.directory.read_json("provenance.json")["sessions"]
    (event,) = session["events"]
    assert (event["what"], event["step"], event["to"], event["rate_scale"]) == ("rollback", 6, 4, 0.5)
    assert trainer.recovered() == {"rollbacks": 1, "rate_scale": 0.5}
    state = runs.last_state("run")
    assert (state["rollbacks"], state["rate_scale"]) == (1, 0.5)
    assert_finite(state)
    # A resumed run keeps the lowered rates.
    longer = runs.open("run", *ROLLBACK, "trainer.steps=10", resume=True)
    longer.fit()
    assert (longer.rollbacks, runs.scalars("run")[-1]["learning_rate/generator"]) == (1, pytest.approx(1e-4))

    # The noise is another: the first update after the rollback is not the one that was made before.
    runs.open("straight", *ROLLBACK).fit()
    straight = runs.scalars("straight")
    assert straight[4]["loss/discriminator"] != lines[4]["loss/discriminator"]
    assert straight[3] == lines[3]


def test_a_rollback_that_was_just_made_survives_a_kill(runs: Runs) -> None:
    for name in ("straight", "killed"):
        trainer = runs.open(name, *ROLLBACK)
        runs.poison(trainer, 6)
        if name == "killed":
            roll_back = trainer._roll_back

            def die(error: DivergedError, roll_back: Callable[[DivergedError], None] = roll_back) -> None:
                roll_back(error)
                raise SystemExit(9)

            runs.patch.setattr(trainer, "_roll_back", die)
            with pytest.raises(SystemExit):
                trainer.fit()
            assert runs.last_state(name)["step"] == 4
            trainer = runs.open(name, *ROLLBACK, resume=True)
        trainer.fit()
    runs.assert_same_bits("straight", "killed")


def test_a_run_that_always_diverges_stops_after_so_many_rollbacks(runs: Runs) -> None:
    trainer = runs.open("run", *ROLLBACK, "trainer.max_rollbacks=2")
    take = trainer.gan.stream.take
    runs.patch.setattr(trainer.gan.stream, "take", lambda: (take()[0] * torch.nan, take()[1]))
    with pytest.raises(DivergedError, match=r"^2 rollbacks have not helped \(trainer.max_rollbacks\): loss/") as error:
        trainer.fit()
    assert "loss/real" in str(error.value)
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
    runs: Runs, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    """Bit for bit the same as when the number of parts is given by hand."""
    auto = (*EVERYTHING, "trainer.steps=4", "trainer.accumulate=auto")
    failing = runs.open("failing", *auto)
    failing.tracker.directory.add_provenance(seed=0)
    out_of_memory(failing.gan, runs.patch, place, 5)
    assert failing.fit().step == 4
    assert failing.gan.schedule.accumulate == failing.schedule.accumulate == 2
    assert failing.recovered() == {"accumulate": 2}
    assert "the batch of 10 is taken in 2 parts of 5" in caplog.text
    (session,) = failing.tracker.directory.read_json("provenance.json")["sessions"]
    assert [event["accumulate"] for event in session["events"]] == [2]

    runs.open("byhand", *EVERYTHING, "trainer.steps=4", "trainer.accumulate=2").fit()
    assert [line for line in runs.differing("byhand", "failing") if not line.startswith("/config/")] == []
    assert runs.scalars("byhand") == runs.scalars("failing")

    again = runs.open("failing", *auto, "trainer.steps=5", resume=True)
    assert again.schedule.micro_batch == again.gan.stream.batch_size == 5
    again.fit()


@pytest.mark.parametrize(("parts", "smallest"), [("1", 1), ("auto", 10)])
def test_out_of_memory_with_single_images_or_a_fixed_number_of_parts_is_an_error(
    runs: Runs, parts: str, smallest: int
) -> None:
    trainer = runs.open("run", *SIMPLE, f"trainer.accumulate={parts}")

    def never_enough(*_: Any) -> None:
        raise MemoryError

    runs.patch.setattr(trainer.gan.objective.loss, "discriminator", never_enough)
    with pytest.raises(MemoryError):
        trainer.fit()
    assert trainer.gan.schedule.accumulate == smallest


def test_a_grid_that_does_not_fit_costs_itself(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    runs.patch.setattr(Sampler, "sample", no_memory)
    assert runs.open("run", *SIMPLE, "trainer.sample_every=4").fit().step == 8
    assert "step 4: no sample grid (out of memory); training continues" in caplog.text


# States of other runs


def test_a_checkpoint_of_other_data_is_refused_and_means_return_to_the_device_of_the_gan(runs: Runs) -> None:
    trainer = runs.open("run", *SIMPLE, "trainer.steps=1")
    trainer.fit()
    state = load(trainer.checkpoints.find("last"))
    for name, override, message in (
        ("classes", TWO_CLASSES, "the checkpoint has the classes"),
        ("images", "data.splits=[train]", "the training images are not those"),
    ):
        other = runs.open(name, *SIMPLE, override)
        with other.tracker, pytest.raises(UserError, match=message) as error:
            other.load_state(state)
        assert "\n" not in str(error.value)
    trainer.gan.device = torch.device("meta")  # stands in for a GPU
    trainer.load_state(state)
    assert trainer.running.total.device.type == trainer.running.first_bad_step.device.type == "meta"


def test_a_finished_run_has_nothing_left_to_do(runs: Runs) -> None:
    trainer = runs.open("run", *SIMPLE, "trainer.steps=2")
    trainer.watch.warned = ["samples"]
    trainer.fit()
    again = runs.open("run", *SIMPLE, "trainer.steps=2", resume=True)
    assert again.watch.warned == ["samples"]  # it does not warn again
    written = again.tracker.directory.metrics.read_bytes()
    assert again.fit().step == 2
    assert again.tracker.directory.metrics.read_bytes() == written
