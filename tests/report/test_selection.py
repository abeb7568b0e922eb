"""Which runs are listed, and how: filters, order, letters, formats."""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from cifargan.errors import UserError
from cifargan.report.footnotes import Footnotes
from cifargan.report.listing import as_csv, as_json, differences, run_table, score_rows
from cifargan.report.selection import Selection, ago
from cifargan.report.summary import RunSummary

Record = Callable[..., dict[str, Any]]


@pytest.fixture
def root(make_run: Callable[..., Path], record: Record, tmp_path: Path) -> Path:
    """Five runs, two of them comparable."""

    def final(value: float, **changes: Any) -> list[dict[str, Any]]:
        return [record(value=value, n=500, images=500, **changes)]

    make_run("b", started="2026-01-02", records=final(30.0), speed=10.0)
    make_run("a", started="2026-01-03", records=final(20.0), speed=30.0, config={"loss": {"name": "bce"}})
    make_run("other", started="2026-01-01", records=final(1.0, reference_fingerprint="x"), status="failed")
    make_run("deep/none", started="2026-01-04", status="diverged", config={"name": "sagan"})
    make_run("odd", started="2026-01-05", status="interrupted", config={"trainer": {"steps": 10, "batch_size": 8}})
    return tmp_path / "outputs"


def names(runs: list[RunSummary], root: Path) -> list[str]:
    return [run.path.relative_to(root).as_posix() for run in runs]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["other", "b", "a", "deep/none", "odd"]),
        ({"reverse": True}, ["odd", "deep/none", "a", "b", "other"]),
        ({"names": ["odd", "b"]}, ["odd", "b"]),
        ({"names": ["odd", "b"], "sort": "started"}, ["b", "odd"]),
        ({"status": ["failed", "diverged"]}, ["other", "deep/none"]),
        ({"name": "sagan"}, ["deep/none"]),
        ({"name": "d*p/n"}, ["deep/none"]),
        ({"where": ["loss.name=bce"]}, ["a"]),
        ({"where": ["trainer.batch_size=8"]}, ["odd"]),
        ({"where": ["optimizer.generator.lr=2e-4", "loss.name=bce"]}, ["a"]),
        ({"where": ["optimizer.generator.betas=[0.5,0.999]", "name=sagan"]}, ["deep/none"]),
        ({"where": ["loss.name=wasserstein"]}, []),
        ({"sort": "step"}, ["other", "b", "a", "deep/none", "odd"]),
        ({"sort": "speed", "status": ["finished"]}, ["a", "b"]),
        ({"sort": "status"}, ["b", "a", "odd", "deep/none", "other"]),
        # Its 1.0 is of another protocol, and does not stand above what it cannot be compared with.
        ({"sort": "score"}, ["a", "b", "other", "deep/none", "odd"]),
    ],
)
def test_filters_and_order(root: Path, settings: dict[str, Any], expected: list[str]) -> None:
    assert names(Selection(root=root, **settings).runs(), root) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"status": ["finnished"]}, "--status finnished: no such choice; did you mean finished?"),
        ({"sort": "scores"}, "--sort scores: no such choice; did you mean score?"),
        ({"where": ["loss.nam=bce"]}, "--where loss.nam: no run has such a setting; did you mean loss.name?"),
        ({"where": ["lr=1"]}, "--where lr: no run has such a setting; did you mean optimizer.generator.lr?"),
        ({"where": ["hinge"]}, "--where hinge: write it as key=value"),
        ({"names": ["od"]}, "there is no run at od"),
    ],
)
def test_a_misspelt_filter_is_told(root: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        Selection(root=root, **settings).runs()
    assert message in str(error.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_run_with_a_pipe_is_left_out_and_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(root / "b" / "samples" / "step_000000001.png")
    assert names(Selection(root=root).runs(), root) == ["other", "a", "deep/none", "odd"]
    assert "its run is left out" in caplog.text


def test_no_runs_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run under"):
        Selection(root=tmp_path).runs()


def test_the_table_marks_every_score(root: Path) -> None:
    rows, notes = run_table(Selection(root=root, sort="score").runs(), root)
    assert [(row[0], row[4], row[5]) for row in rows[1:]] == [
        ("a", "20.00", "a"),
        ("b", "30.00", "a"),
        ("other", "1.00", "b"),
        ("deep/none", "-", ""),
        ("odd", "-", ""),
    ]
    assert [note[:1] for note in notes] == ["a", "b"]
    assert "cd0f4874" in notes[0]
    assert "(1,498, x)" in notes[1]


def test_scores_of_two_protocols_never_share_a_row(root: Path) -> None:
    runs = Selection(root=root, names=["a", "other", "b"]).runs()
    rows, _ = score_rows(runs, root)
    assert rows == [
        ["score", "", "a", "other", "b"],
        ["fid_n500_train", "a", "20.00 @100", "-", "30.00 @100"],
        ["fid_n500_train", "b", "-", "1.00 @100", "-"],
    ]


def test_letters_go_on_after_z(record: Record, root: Path) -> None:
    (run,) = Selection(root=root, names=["a"]).runs()
    scores = [type(run.scores[0])(**{**vars(run.scores[0]), "protocol": str(i)}) for i in range(54)]
    letters = Footnotes(scores)
    assert [letters.of(scores[i]) for i in (0, 25, 26, 51, 52)] == ["a", "z", "aa", "az", "ba"]


def test_json_is_json(root: Path) -> None:
    listed = json.loads(as_json(Selection(root=root).runs()))
    assert [run["headline"] and run["headline"]["value"] for run in listed] == [1.0, 30.0, 20.0, None, None]
    assert listed[1]["path"] == str(root / "b")


def test_no_cell_is_a_formula(make_run: Callable[..., Path], tmp_path: Path) -> None:
    make_run(config={"name": '=HYPERLINK("x")'}, device="@cmd", overrides=("+a=1", "b=2"))
    (row,) = csv.DictReader(io.StringIO(as_csv(Selection(root=tmp_path / "outputs").runs())))
    assert (row["name"], row["device"], row["overrides"]) == ('\'=HYPERLINK("x")', "'@cmd", "'+a=1 b=2")
    assert (row["status"], row["step"], row["score_value"]) == ("finished", "200", "")


def test_differences_are_all_there_is_to_see() -> None:
    one = OmegaConf.create({"a": {"b": 1, "c": [1, 2]}, "same": 3, "gone": None})
    other = OmegaConf.create({"a": {"b": 2, "c": [1, 2]}, "same": 3, "new": True})
    assert differences(one, other) == [("a.b", "1", "2"), ("gone", "null", "-"), ("new", "-", "True")]


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (125, "2 min"), (7200, "2 h"), (3 * 86400, "3 d")])
def test_ages(seconds: float, text: str) -> None:
    assert ago(seconds) == text
