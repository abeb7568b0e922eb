"""Records: the names of scores, the file of scores, and replaced scores."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cifargan.errors import UserError
from cifargan.evaluation.records import (
    FeatureSpace,
    Protocol,
    Record,
    ReferenceCard,
    add_to_file,
    formatted,
    read_file,
    scalars,
)

PROTOCOL = Protocol(
    n=50_000,
    space=FeatureSpace(extractor="inception", weights_hash="6726825d", resize="TF1 bilinear to 299", dtype="float32"),
    subject="run",
    step=7,
    checkpoint="last",
    weights="ema",
    batch_norm="standing",
    seed=1,
)
TRAIN = ReferenceCard(name="cifar10", split="train", n=50_000, fingerprint="abc")
FID = Record(metric="fid", value=12.5, n=50_000, protocol=PROTOCOL, reference=TRAIN)
KID = replace(FID, metric="kid", kind="kid", value=0.01, spread=0.002, spread_over="100 subsets of 1000")


def test_keys_contain_metric_number_split_and_class() -> None:
    assert FID.key == "fid_n50000_train"
    assert replace(FID, class_name="cat", n=5000).key == "fid_n5000_train/cat"
    without = replace(FID, metric="is", reference=None)
    assert (without.key, without.flat()["reference_name"]) == ("is_n50000", None)
    assert scalars([FID, KID]) == {
        "score/fid_n50000_train": 12.5,
        "score/kid_n50000_train": 0.01,
        "score/kid_n50000_train_std": 0.002,
    }


def test_a_file_keeps_one_score_for_each_protocol(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    assert read_file(path) == []
    add_to_file(path, [FID, KID])
    truncated = replace(FID, protocol=replace(PROTOCOL, truncation=0.5), value=20.0)
    add_to_file(path, [replace(FID, value=12.0), truncated])
    assert [(record["metric"], record["value"], record["truncation"]) for record in read_file(path)] == [
        ("kid", 0.01, None),
        ("fid", 12.0, None),
        ("fid", 20.0, 0.5),
    ]
    assert json.loads(path.read_text())["records"] == read_file(path)


CONTENTS = ["", "{}", "[1]", '{"records": [1]}', '{"records": 3}', '{"records": [{"a": []}]}', "[" * 20_000, "\x00"]


@pytest.mark.parametrize("content", CONTENTS)
def test_a_file_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(content)
    with pytest.raises(UserError, match=f"{path} is damaged or holds no scores"):
        add_to_file(path, [FID])
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (12.3456, None, "12.35"),
        (8.3, 0.08, "8.30 ± 0.08"),
        (0.0123456, 0.0011, "0.0123 ± 0.0011"),
        (0.00012345, None, "0.000123"),
        (0.0, None, "0.0000"),
    ],
)
def test_scores_are_shown_with_significant_digits(value: float, spread: float | None, text: str) -> None:
    assert formatted(replace(FID, value=value, spread=spread)) == text
