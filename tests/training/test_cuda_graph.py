"""Captured iterations: when they are trusted, and that a trial leaves no trace. A stand-in replays them without a GPU."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from cifargan.objectives.augment import DiffAugment
from cifargan.objectives.penalties import R1, LeCam
from cifargan.training.cuda_graph import MAX_KINDS, WARM_UP, CapturedSteps, Kind
from cifargan.training.optimizers import adam
from cifargan.training.precision import Precision, PrecisionName
from cifargan.training.speed import SpeedOptions
from cifargan.training.step import GANStep

GANMaker = Callable[..., GANStep]
ALL = frozenset({"lecam"})
Replay = Callable[[], dict[str, Tensor]]


class StandIn(CapturedSteps):
    """A graph without CUDA: what it replays is made by `make`, from the iteration."""

    make: Callable[[GANStep], Replay]
    gan: GANStep

    def capture(self, kind: Kind) -> Replay:
        return self.make(self.gan)

    def _run_on_side_stream(self, kind: Kind) -> dict[str, Tensor]:
        return self.iteration(kind)


def recorded(gan: GANStep, make: Callable[[GANStep], Replay]) -> GANStep:
    stand_in = StandIn(gan.iteration, tensors=gan.tensors, generators=[gan.stream.generator], device=gan.device)
    stand_in.make, stand_in.gan = make, gan
    gan.run = stand_in
    return gan


def rich(new_gan: GANMaker) -> GANStep:
    return new_gan(
        optimizer=adam,
        penalties={"lecam": LeCam(start=2)},
        augment=DiffAugment(),
        ema={"decay": 0.9, "start": 1},
        d_steps=2,
        lr_decay_from=3,
    )


def replayed(gan: GANStep) -> Replay:
    """Into the same tensors each time, as a graph does."""
    static: dict[str, Tensor] = {}

    def replay() -> dict[str, Tensor]:
        for name, value in gan.iteration(ALL).items():
            static.setdefault(name, torch.empty_like(value)).copy_(value)
        return static

    return replay


def test_a_faithful_recording_is_played_and_its_trial_leaves_no_trace(
    new_gan: GANMaker, differences: Callable[[object, object], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    played, plain = 0, rich(new_gan)

    def make(gan: GANStep) -> Replay:
        replay = replayed(gan)

        def counted() -> dict[str, Tensor]:
            nonlocal played
            played += 1
            return replay()

        return counted

    torch.manual_seed(5)
    expected = [plain.iterate() for _ in range(8)]
    end = plain.state()
    gan = recorded(rich(new_gan), make)
    torch.manual_seed(5)
    for metrics in expected:
        torch.testing.assert_close(gan.iterate(), metrics, rtol=0, atol=0)
    assert differences(gan.state(), end) == []
    assert played == 1 + 8 - WARM_UP  # the trial, and every round after the first few
    assert caplog.text == ""


def frozen_noise(gan: GANStep) -> Replay:
    """A fault of hand-made graphs: the random numbers of the recording, again and again."""

    def replay() -> dict[str, Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return gan.iteration(ALL)

    return replay


def lost_update(gan: GANStep) -> Replay:
    """Another: one network is left out. Random numbers are drawn as ever."""

    def replay() -> dict[str, Tensor]:
        weights = [weight.clone() for weight in gan.discriminator.parameters()]
        metrics = gan.iteration(ALL)
        for weight, before in zip(gan.discriminator.parameters(), weights, strict=True):
            weight.data.copy_(before)
        return {**metrics, "gradient_norm/discriminator": torch.zeros(())}

    return replay


def refused(gan: GANStep) -> Replay:
    raise RuntimeError("operation not permitted when stream is capturing\nand more lines")


def torn(gan: GANStep) -> Replay:
    """Memory that runs out in the middle of a replay, when half of the round has happened."""

    def replay() -> dict[str, Tensor]:
        gan.discriminator_step(ALL)
        raise torch.OutOfMemoryError("CUDA out of memory")

    return replay


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (torn, "CUDA out of memory"),
        (frozen_noise, "random numbers"),
        (lost_update, "gradient_norm/discriminator"),
        (refused, "operation not permitted when stream is capturing"),
    ],
)
def test_a_recording_that_fails_or_differs_is_not_used_and_training_goes_on_as_without(
    new_gan: GANMaker,
    differences: Callable[[object, object], list[str]],
    caplog: pytest.LogCaptureFixture,
    make: Callable[[GANStep], Replay],
    reason: str,
) -> None:
    plain = rich(new_gan)
    torch.manual_seed(5)
    for _ in range(7):
        plain.iterate()
    end = plain.state()
    gan = recorded(rich(new_gan), make)
    torch.manual_seed(5)
    for _ in range(7):
        gan.iterate()
    assert differences(gan.state(), end) == []
    (line,) = [record.getMessage() for record in caplog.records]
    assert reason in line
    assert "\n" not in line


def test_each_kind_of_iteration_is_captured_once_and_rare_kinds_stay_eager(
    new_gan: GANMaker, differences: Callable[[object, object], list[str]]
) -> None:
    def penalised() -> GANStep:
        intervals = {f"every_{k}": R1(gamma=0.1, interval=k) for k in (2, 3, 5)}
        return new_gan(optimizer=adam, penalties=intervals, ema={"decay": 0.9})

    plain, gan = penalised(), penalised()
    captured: list[Kind] = []

    class Kinds(StandIn):
        def capture(self, kind: Kind) -> Replay:
            captured.append(kind)
            return partial(gan.iteration, kind)

    gan.run = Kinds(gan.iteration, tensors=gan.tensors, generators=[gan.stream.generator], device=gan.device)
    for each in (plain, gan):
        torch.manual_seed(5)
        for _ in range(100):
            each.iterate()
    assert differences(gan.state(), plain.state()) == []
    assert len(captured) == len(set(captured)) == MAX_KINDS
    assert gan.run.replayed == set(captured)
    # 22, 14 and 7 of 30 iterations; all three penalties at once come every 30th.
    assert {frozenset(), frozenset({"every_2"}), frozenset({"every_3"})} <= set(captured)
    assert frozenset({"every_2", "every_3", "every_5"}) not in captured


@pytest.mark.parametrize("scaled", [False, True])
def test_a_round_changes_nothing_but_what_it_says_it_changes(new_gan: GANMaker, scaled: bool) -> None:
    """What the trial restores is complete: a round played, undone and played again is the same round."""
    gan = rich(new_gan)
    # As in fp16. It doubles with every good update, so a second one would be seen in it.
    gan.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=1, enabled=scaled)
    gan.iterate()
    trial = recorded(gan, replayed).run
    assert isinstance(trial, CapturedSteps)
    gan.prepare()
    before = trial._snapshot()
    first = {name: value.clone() for name, value in gan.iteration(ALL).items()}
    scale = gan.precision.figures()
    trial._restore(before)
    torch.testing.assert_close(gan.iteration(ALL), first, rtol=0, atol=0)
    assert gan.precision.figures() == scale
    assert len(scale) == int(scaled)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("fp16", 2e-2)])
def test_a_real_graph_plays_the_rounds_of_the_loop(
    new_gan: GANMaker, caplog: pytest.LogCaptureFixture, precision: PrecisionName, tolerance: float
) -> None:
    ends = []
    for graph in (False, True):
        gan = new_gan(
            optimizer=partial(adam, fused=True, recorded=graph),
            penalties={"lecam": LeCam(start=2)},
            augment=DiffAugment(),
            device="cuda",
            d_steps=2,
            lr_decay_from=3,
        )
        gan.speed = SpeedOptions(graph=graph)
        gan.precision = Precision(precision, gan.device)
        gan.run = gan._captured()
        torch.cuda.manual_seed(5)
        ends.append([{name: value.item() for name, value in gan.iterate().items()} for _ in range(9)])
    assert caplog.text == ""
    for plain, replay in zip(*ends, strict=True):
        assert replay == pytest.approx(plain, rel=tolerance, abs=tolerance)
