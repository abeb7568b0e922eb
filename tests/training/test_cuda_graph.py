"""The recording of a round: when it is trusted, and that it leaves no trace. A stand-in replays it where no GPU is."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from cifargan.objectives.augment import DiffAugment
from cifargan.objectives.regularizers import LeCam
from cifargan.training.cuda_graph import WARM_UP, CapturedStep
from cifargan.training.game import Game
from cifargan.training.optimizers import adam
from cifargan.training.precision import Precision, PrecisionName
from cifargan.training.speed import Switches

GameMaker = Callable[..., Game]
Round = Callable[[], dict[str, Tensor]]


class StandIn(CapturedStep):
    """A recording without CUDA: what it replays is made by `make`, from the round."""

    make: Callable[[Game], Round]
    game: Game

    def record(self) -> Round:
        return self.make(self.game)

    def _play_apart(self) -> dict[str, Tensor]:
        return self.play()


def recorded(game: Game, make: Callable[[Game], Round]) -> Game:
    stand_in = StandIn(game.play, tensors=game.tensors, generators=[game.stream.generator], device=game.device)
    stand_in.make, stand_in.game = make, game
    game.round = stand_in
    return game


def rich(new_game: GameMaker) -> Game:
    return new_game(
        optimizer=adam,
        regularizer=LeCam(start=2),
        augment=DiffAugment(),
        ema={"decay": 0.9, "start": 1},
        d_steps=2,
        lr_decay_from=3,
    )


def replayed(game: Game) -> Round:
    """Into the same tensors each time, as a graph does."""
    static: dict[str, Tensor] = {}

    def replay() -> dict[str, Tensor]:
        for name, value in game.play().items():
            static.setdefault(name, torch.empty_like(value)).copy_(value)
        return static

    return replay


def test_a_faithful_recording_is_played_and_its_trial_leaves_no_trace(
    new_game: GameMaker, differences: Callable[[object, object], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    played, plain = 0, rich(new_game)

    def make(game: Game) -> Round:
        replay = replayed(game)

        def counted() -> dict[str, Tensor]:
            nonlocal played
            played += 1
            return replay()

        return counted

    torch.manual_seed(5)
    expected = [plain.iterate() for _ in range(8)]
    end = plain.state()
    game = recorded(rich(new_game), make)
    torch.manual_seed(5)
    for metrics in expected:
        torch.testing.assert_close(game.iterate(), metrics, rtol=0, atol=0)
    assert differences(game.state(), end) == []
    assert played == 1 + 8 - WARM_UP  # the trial, and every round after the first few
    assert caplog.text == ""


def frozen_noise(game: Game) -> Round:
    """A fault of hand-made graphs: the random numbers of the recording, again and again."""

    def replay() -> dict[str, Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return game.play()

    return replay


def lost_update(game: Game) -> Round:
    """Another: one network is left out. Random numbers are drawn as ever."""

    def replay() -> dict[str, Tensor]:
        weights = [weight.clone() for weight in game.discriminator.parameters()]
        metrics = game.play()
        for weight, before in zip(game.discriminator.parameters(), weights, strict=True):
            weight.data.copy_(before)
        return {**metrics, "gradient_norm/discriminator": torch.zeros(())}

    return replay


def refused(game: Game) -> Round:
    raise RuntimeError("operation not permitted when stream is capturing\nand more lines")


def torn(game: Game) -> Round:
    """Memory that runs out in the middle of a replay, when half of the round has happened."""

    def replay() -> dict[str, Tensor]:
        game.discriminator_step()
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
    new_game: GameMaker,
    differences: Callable[[object, object], list[str]],
    caplog: pytest.LogCaptureFixture,
    make: Callable[[Game], Round],
    reason: str,
) -> None:
    plain = rich(new_game)
    torch.manual_seed(5)
    for _ in range(7):
        plain.iterate()
    end = plain.state()
    game = recorded(rich(new_game), make)
    torch.manual_seed(5)
    for _ in range(7):
        game.iterate()
    assert differences(game.state(), end) == []
    (line,) = [record.getMessage() for record in caplog.records]
    assert reason in line
    assert "\n" not in line


@pytest.mark.parametrize("scaled", [False, True])
def test_a_round_changes_nothing_but_what_it_says_it_changes(new_game: GameMaker, scaled: bool) -> None:
    """What the trial restores is complete: a round played, undone and played again is the same round."""
    game = rich(new_game)
    # As in fp16. It doubles with every good update, so a second one would be seen in it.
    game.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=1, enabled=scaled)
    game.iterate()
    trial = recorded(game, replayed).round
    assert isinstance(trial, CapturedStep)
    game.prepare()
    before = trial._snapshot()
    first = {name: value.clone() for name, value in game.play().items()}
    scale = game.precision.figures()
    trial._restore(before)
    torch.testing.assert_close(game.play(), first, rtol=0, atol=0)
    assert game.precision.figures() == scale
    assert len(scale) == int(scaled)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("fp16", 2e-2)])
def test_a_real_graph_plays_the_rounds_of_the_loop(
    new_game: GameMaker, caplog: pytest.LogCaptureFixture, precision: PrecisionName, tolerance: float
) -> None:
    ends = []
    for graph in (False, True):
        game = new_game(
            optimizer=partial(adam, fused=True, recorded=graph),
            regularizer=LeCam(start=2),
            augment=DiffAugment(),
            device="cuda",
            d_steps=2,
            lr_decay_from=3,
        )
        game.switches = Switches(graph=graph)
        game.precision = Precision(precision, game.device)
        game.round = game._recorded_play()
        torch.cuda.manual_seed(5)
        ends.append([{name: value.item() for name, value in game.iterate().items()} for _ in range(9)])
    assert caplog.text == ""
    for plain, replay in zip(*ends, strict=True):
        assert replay == pytest.approx(plain, rel=tolerance, abs=tolerance)
