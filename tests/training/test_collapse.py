"""Two signs of a collapse: each is told once, and a healthy run hears nothing."""

import logging

import pytest
import torch
from torch import Tensor

from cifargan.evaluation.records import FeatureSpace, Protocol, Record, ReferenceCard
from cifargan.training.collapse import CollapseWatch, spread
from cifargan.training.early_stopping import ScoreWatch


def noise(n: int, amplitude: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (128 + torch.randint(-amplitude, amplitude + 1, (n, 3, 8, 8), generator=generator)).to(torch.uint8)


@pytest.fixture
def watch() -> CollapseWatch:
    return CollapseWatch(real_spread=50.0, patience=4)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_spread_is_the_deviation_over_the_batch() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    images[1] = 10
    images[:, 1] = 77  # the same in every image, however bright
    assert spread(images) == pytest.approx(5.0 * 2 / 3, rel=1e-6)
    assert spread(noise(500, 100)) == pytest.approx((201**2 / 12) ** 0.5, rel=0.02)


def test_a_flat_loss_under_a_perfect_discriminator_is_told_once(
    watch: CollapseWatch, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(3):
        watch.look_at_losses(8.0 + 0.1 * step, step, won=True)
    assert warnings(caplog) == []
    for step in range(3, 12):
        watch.look_at_losses(8.0, step, won=True)
    (message,) = warnings(caplog)
    assert message.startswith("step 3: the discriminator has been right about every image for 4 logs")


@pytest.mark.parametrize(
    "windows",
    [
        pytest.param([(8.0 - 0.5 * i, True) for i in range(12)], id="the loss falls"),
        pytest.param([(8.0, False) for _ in range(12)], id="some images are misjudged"),
        pytest.param([(8.0, i % 4 != 3) for i in range(12)], id="interrupted"),
    ],
)
def test_a_healthy_run_is_left_in_peace(
    watch: CollapseWatch, caplog: pytest.LogCaptureFixture, windows: list[tuple[float, bool]]
) -> None:
    for step, (loss, won) in enumerate(windows):
        watch.look_at_losses(loss, step, won=won)
    assert warnings(caplog) == []


def test_negative_losses_count_as_flat_too(watch: CollapseWatch, caplog: pytest.LogCaptureFixture) -> None:
    for step in range(4):
        watch.look_at_losses(-8.0 - 0.1 * step, step, won=True)
    assert len(warnings(caplog)) == 1


def test_samples_that_are_all_alike_are_told_once(watch: CollapseWatch, caplog: pytest.LogCaptureFixture) -> None:
    watch.look_at_samples(noise(20, 20), 5)  # a spread of about 12 of 50
    assert warnings(caplog) == []
    for step in (6, 7):
        watch.look_at_samples(noise(20, 3), step)  # about 2 of 50
    (message,) = warnings(caplog)
    assert message.startswith("step 6: the samples hardly differ from one another (spread 1.9 against 50.0")


def test_a_young_run_is_given_three_grids(watch: CollapseWatch, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        watch.look_at_samples(noise(20, 3), step)
    assert warnings(caplog) == []
    watch.look_at_samples(noise(20, 3), 3)
    assert len(warnings(caplog)) == 1


def test_one_sample_or_one_real_image_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    CollapseWatch(real_spread=50.0).look_at_samples(noise(1, 50), 1)
    CollapseWatch(real_spread=spread(noise(1, 50))).look_at_samples(noise(4, 50), 1)
    assert warnings(caplog) == []


def test_a_resumed_run_counts_on_and_does_not_warn_again(caplog: pytest.LogCaptureFixture) -> None:
    first = CollapseWatch(real_spread=50.0, patience=4)
    for step in range(3):
        first.look_at_samples(noise(20, 1), step)
    for step in range(2):
        first.look_at_losses(8.0, step, won=True)
    assert len(warnings(caplog)) == 1
    second = CollapseWatch(real_spread=50.0, patience=4)
    second.load_state_dict(first.state_dict())
    second.look_at_samples(noise(20, 1), 2)
    second.look_at_losses(8.0, 2, won=True)
    assert len(warnings(caplog)) == 1
    second.look_at_losses(8.0, 3, won=True)
    assert len(warnings(caplog)) == 2
    third = CollapseWatch(real_spread=50.0, patience=4)
    third.load_state_dict(second.state_dict())
    for step in range(4, 9):
        third.look_at_losses(8.0, step, won=True)
    assert len(warnings(caplog)) == 2


# Scores


def card(split: str) -> ReferenceCard:
    return ReferenceCard(name="noise", split=split, n=10, fingerprint="abc")


def record(metric: str, value: float) -> Record:
    protocol = Protocol(
        n=10, space=FeatureSpace(extractor="x", weights_hash="", resize="", dtype=""), subject="training"
    )
    return Record(metric=metric, value=value, n=10, protocol=protocol, reference=card("train"))


def test_the_best_score_is_the_lowest_and_no_number_is_none() -> None:
    scores = ScoreWatch(warn_after=3, stop_after=None)
    assert [scores.look(value, step) for step, value in enumerate([5.0, 6.0, 4.0, 4.0, float("nan")])] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert (scores.best, scores.best_step) == (4.0, 2)
    assert not scores.over


def test_the_best_score_may_be_the_highest(caplog: pytest.LogCaptureFixture) -> None:
    scores = ScoreWatch(warn_after=2, stop_after=None, target=0.5, better="higher")
    assert [scores.look(value, step) for step, value in enumerate([0.2, 0.3, 0.2])] == [True, True, False]
    assert (scores.best, scores.reached, warnings(caplog)) == (0.3, False, [])
    scores.look(0.1, 3)
    assert "has got worse for 2 evaluations in a row, from the best 0.3 at step 1 to 0.1" in warnings(caplog)[0]
    assert scores.look(0.5, 4)
    assert scores.over


def test_a_score_that_rises_again_and_again_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    scores = ScoreWatch(warn_after=2, stop_after=None)
    for step, value in enumerate([5.0, 6.0, 5.5, 6.0]):  # never twice in a row
        scores.look(value, step)
    assert warnings(caplog) == []
    for step, value in enumerate([7.0, 8.0, 9.0], start=4):
        scores.look(value, step)
    (message,) = warnings(caplog)
    assert message.startswith(
        "step 4: the score has got worse for 2 evaluations in a row, from the best 5 at step 0 to 7: the run may be collapsing"
    )


def test_training_gives_up_after_evaluations_without_a_new_best(caplog: pytest.LogCaptureFixture) -> None:
    scores = ScoreWatch(warn_after=9, stop_after=2)
    for step, value in enumerate([5.0, 6.0, 4.0, 6.0]):
        scores.look(value, step)
        assert not scores.over
    scores.look(5.0, 4)
    assert scores.over
    (message,) = warnings(caplog)
    assert message == "step 4: no better score than 4 (step 2) for 2 evaluations (evaluator.stop_after): training ends"


def test_what_a_distance_hides_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    scores = ScoreWatch(warn_after=9, stop_after=None)
    scores.look_at_details([record("precision", 0.0), record("coverage", 0.0)], 0)  # nothing learnt yet
    fine = [record("precision", 0.5), record("recall_lite0_64", 0.06), record("density", 0.0), record("fid", 0.0)]
    scores.look_at_details(fine, 1)
    scores.look_at_details([record("coverage", 0.0)], 1)
    assert warnings(caplog) == []
    scores.look_at_details([record("recall_lite0_64", 0.009), record("precision", 0.0)], 2)
    scores.look_at_details([record("recall_lite0_64", 0.001)], 3)
    assert [message.split(":")[:2] for message in warnings(caplog)] == [
        ["step 2", " recall_lite0_64 is 0.009"],
        ["step 2", " precision is 0"],
    ]


def test_a_resumed_run_remembers_its_scores_and_gets_another_chance() -> None:
    scores = ScoreWatch(warn_after=2, stop_after=3)
    for step, value in enumerate([5.0, 6.0, 7.0]):
        scores.look(value, step)
    resumed = ScoreWatch(warn_after=2, stop_after=3)
    resumed.load_state_dict(scores.state_dict())
    assert resumed.state_dict() == scores.state_dict()
    scores.look(8.0, 3)
    assert scores.over
    resumed.load_state_dict(scores.state_dict())
    assert not resumed.over
    assert (resumed.best, resumed.best_step) == (5.0, 0)


def test_a_target_ends_training_when_it_is_reached(caplog: pytest.LogCaptureFixture) -> None:
    scores = ScoreWatch(warn_after=9, stop_after=None, target=4.0)
    with caplog.at_level("INFO"):
        assert scores.look(4.5, step=1)
        assert not scores.over
        assert scores.look(4.0, step=2)
    assert scores.over
    assert [record.getMessage() for record in caplog.records] == [
        "step 2: 4 has reached evaluator.target=4.0: training ends"
    ]
    assert not ScoreWatch(warn_after=9, stop_after=None).over
