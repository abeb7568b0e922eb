"""The best score, the warnings about worse ones, and the scores that end a run."""

import logging
import math
from typing import Any

import pytest

from cifargan.evaluation.records import FeatureSpace, Protocol, Record, ReferenceCard
from cifargan.training.early_stopping import ScoreWatch


def fed(*values: float, first: int = 0, scores: ScoreWatch | None = None, **settings: Any) -> ScoreWatch:
    """A watch that has seen some scores, one per step."""
    scores = scores or ScoreWatch(**{"warn_after": 9, "stop_after": None, **settings})
    for step, value in enumerate(values, start=first):
        scores.look(value, step)
    return scores


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def record(metric: str, value: float) -> Record:
    space = FeatureSpace(extractor="x", weights_hash="", resize="", dtype="")
    reference = ReferenceCard(name="noise", split="train", n=10, fingerprint="abc")
    protocol = Protocol(n=10, space=space, subject="training")
    return Record(metric=metric, value=value, n=10, protocol=protocol, reference=reference)


@pytest.mark.parametrize(
    ("better", "values", "best"),
    [
        ("lower", {5.0: True, 6.0: False, 4.0: True, 4.1: False, math.nan: False}, (4.0, 2)),
        ("higher", {0.2: True, 0.3: True, 0.1: False}, (0.3, 1)),
    ],
)
def test_the_best_score_is_the_lowest_or_the_highest_and_never_nan(
    better: Any, values: dict[float, bool], best: tuple[float, int]
) -> None:
    scores = ScoreWatch(warn_after=3, stop_after=None, better=better)
    assert [scores.look(value, step) for step, value in enumerate(values)] == list(values.values())
    assert (scores.best, scores.best_step) == best
    assert not scores.look(best[0], 9)  # as good is not better
    assert not scores.over


def test_a_score_that_gets_worse_in_a_row_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    scores = fed(5.0, 6.0, 5.5, 6.0, warn_after=2)  # never twice in a row
    assert messages(caplog) == []
    fed(7.0, 8.0, 9.0, first=4, scores=scores)
    (message,) = messages(caplog)
    assert message.startswith(
        "step 4: the score has got worse for 2 evaluations in a row, from the best 5 at step 0 to 7: the run may be collapsing"
    )
    fed(0.2, 0.3, 0.2, 0.1, warn_after=2, better="higher")
    assert "has got worse for 2 evaluations in a row, from the best 0.3 at step 1 to 0.1" in messages(caplog)[1]


def test_training_ends_after_evaluations_without_a_new_best(caplog: pytest.LogCaptureFixture) -> None:
    scores = ScoreWatch(warn_after=9, stop_after=2)
    for step, value in enumerate([5.0, 6.0, 4.0, 6.0]):
        scores.look(value, step)
        assert not scores.over
    scores.look(5.0, 4)
    assert scores.over
    (message,) = messages(caplog)
    assert message == "step 4: no better score than 4 (step 2) for 2 evaluations (evaluator.stop_after): training ends"


@pytest.mark.parametrize(("better", "missed", "target"), [("lower", 4.5, 4.0), ("higher", 0.3, 0.5)])
def test_a_target_ends_training_when_it_is_reached(
    better: str, missed: float, target: float, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        scores = fed(missed, first=1, target=target, better=better)
        assert not scores.over
        assert scores.look(target, step=2)
    assert scores.over
    assert messages(caplog) == [f"step 2: {target:.4g} has reached evaluator.target={target}: training ends"]
    assert not fed().over


def test_what_a_distance_hides_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    scores = fed()
    scores.look_at_details([record("precision", 0.0), record("coverage", 0.0)], 0)  # nothing learnt yet
    fine = [record("precision", 0.5), record("recall_lite0_64", 0.06), record("density", 0.0), record("fid", 0.0)]
    scores.look_at_details(fine, 1)
    scores.look_at_details([record("coverage", 0.0)], 1)
    assert messages(caplog) == []
    scores.look_at_details([record("recall_lite0_64", 0.009), record("precision", 0.0)], 2)
    scores.look_at_details([record("recall_lite0_64", 0.001)], 3)
    assert [message.split(":")[:2] for message in messages(caplog)] == [
        ["step 2", " recall_lite0_64 is 0.009"],
        ["step 2", " precision is 0"],
    ]


def test_a_resumed_run_keeps_its_scores_and_gets_another_chance() -> None:
    settings: dict[str, Any] = {"warn_after": 2, "stop_after": 3}
    scores, resumed = fed(5.0, 6.0, 7.0, **settings), fed(**settings)
    resumed.load_state_dict(scores.state_dict())
    assert resumed.state_dict() == scores.state_dict()
    assert fed(8.0, first=3, scores=scores).over
    resumed.load_state_dict(scores.state_dict())
    assert not resumed.over
    assert (resumed.best, resumed.best_step) == (5.0, 0)
