"""What decides whether two scores may be compared, and which scores a run is judged by."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cifargan.report.scores import headline, protocol_of, record_from, score_of
from cifargan.report.summary import summary_of

Record = Callable[..., dict[str, Any]]


def protocol(flat: dict[str, Any]) -> str:
    known = record_from(flat)
    assert known is not None
    return protocol_of(known)


def test_a_protocol_in_words(record: Record) -> None:
    assert protocol(record(n=10_000, images=50_000)) == (
        "10,000 of 50,000 images, against digits train (1,498, cd0f4874), inception 6726825d, TF1 bilinear to 299, "
        "float32, standing batch norm, ema weights, no truncation"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"n": 50},
        {"n": 50, "images": 50},
        {"reference_name": "cifar10"},
        {"reference_split": "test"},
        {"reference_n": 10},
        {"reference_fingerprint": "other"},
        {"reference_name": None},
        {"extractor": "dinov2"},
        {"weights_hash": "other"},
        {"resize": "none"},
        {"dtype": "bfloat16"},
        {"batch_norm": "running"},
        {"weights": "raw"},
        {"truncation": 0.5},
        {"checkpoint": "best"},
        {"spread_over": "100 subsets of 50"},
    ],
)
def test_what_decides_a_score_is_in_its_protocol(record: Record, change: dict[str, Any]) -> None:
    assert protocol(record(**change)) != protocol(record())


@pytest.mark.parametrize("change", [{"step": 7}, {"seed": 9}, {"subject": "outputs/x"}, {"value": 3.0}])
def test_what_is_compared_is_not_in_it(record: Record, change: dict[str, Any]) -> None:
    assert protocol(record(**change)) == protocol(record())


def test_scores_are_written_with_the_digits_that_mean_something(record: Record) -> None:
    known = record_from(record(metric="kid", value=0.01234567, spread=0.000801))
    assert known is not None
    assert score_of(known).shown == "0.0123 ± 0.0008"


def test_as_many_samples_at_the_end_as_in_training(make_run: Callable[..., Path], record: Record) -> None:
    """Then the last scores of a finished run are its final ones, and part of its history."""
    records = [record(value=30.0, step=100), record(value=20.0, step=200)]
    config = {"evaluator": {"samples": 100, "final_samples": 100}}
    finished = summary_of(make_run("finished", records=records, config=config))
    assert [score.value for score in finished.scores] == [20.0]
    assert [score.value for score in finished.history] == [30.0, 20.0]
    going = summary_of(make_run("going", records=records, config=config, status="interrupted"))
    assert going.scores == ()


def test_the_best_is_of_the_protocol_that_was_used_last(make_run: Callable[..., Path], record: Record) -> None:
    records = [
        record(value=5.0, step=50, images=20, n=20),
        record(value=30.0, step=100),
        record(value=29.0, step=100, metric="kid"),
        record(value=31.0, step=150),
    ]
    best = summary_of(make_run(records=records)).best
    assert best is not None
    assert (best.key, best.value) == ("fid_n100_train", 30.0)


def test_a_run_is_listed_by_an_untruncated_distance(record: Record) -> None:
    def score(**changes: Any) -> Any:
        known = record_from(record(**changes))
        assert known is not None
        return score_of(known)

    truncated, whole, best = score(truncation=0.5, value=1.0), score(value=2.0), score(value=3.0)
    gap, recall = score(metric="fid_gap"), score(metric="recall")
    assert headline(best, [recall, gap, truncated, whole]) == whole
    assert headline(best, [recall, gap, truncated]) == best
    assert headline(None, [recall, gap, truncated]) == truncated
    assert headline(None, [recall, gap]) is None
