"""Which runs are listed, their order and footnotes, the JSON and the differences of settings."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from cifargan.errors import UserError
from cifargan.runs.listing import Footnotes, age, as_json, differences, run_table, select
from cifargan.runs.read import RunSummary

MakeRun = Callable[..., Path]
Line = Callable[..., dict[str, Any]]


@pytest.fixture
def root(make_run: MakeRun, record: Line, tmp_path: Path) -> Path:
    """Five runs, two of them comparable."""

    def final(value: float, **changes: Any) -> list[dict[str, Any]]:
        return [record(value=value, n=500, images=500, **changes)]

    make_run("b", started="2026-01-02", records=final(30.0), speed=10.0)
    make_run("a", started="2026-01-03", records=final(20.0), speed=30.0, config={"loss": {"name": "bce"}})
    make_run("other", started="2026-01-01", records=final(1.0, reference_fingerprint="x"), status="failed")
    make_run("deep/none", started="2026-01-04", status="diverged", config={"name": "sagan"})
    make_run("odd", started="2026-01-05", status="interrupted", config={"trainer": {"steps": 10, "batch_size": 8}})
    return tmp_path / "outputs"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["other", "b", "a", "deep/none", "odd"]),
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
        # The 1.0 of `other` has another protocol and is not ranked above scores that it cannot be compared with.
        ({"sort": "score"}, ["a", "b", "other", "deep/none", "odd"]),
    ],
)
def test_filters_and_order(root: Path, settings: dict[str, Any], expected: list[str]) -> None:
    assert [run.path.relative_to(root).as_posix() for run in select(root, **settings)] == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"where": ["loss.nam=bce"]}, ["--where loss.nam", "no run has such a setting", "did you mean loss.name?"]),
        ({"where": ["lr=1"]}, ["--where lr", "did you mean optimizer.generator.lr?"]),
        ({"where": ["hinge"]}, ["--where hinge", "key=value"]),
        ({"where": ["loss.name=["]}, ["--where loss.name=[", "key=value"]),
        ({"names": ["od"]}, ["there is no run at od"]),
        ({"root": Path("nowhere")}, ["there is no run under"]),
    ],
)
def test_a_wrong_filter_is_an_error(root: Path, settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        select(**{"root": root, **settings})
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_run_with_a_pipe_is_left_out_with_a_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(root / "b" / "samples" / "step_000000001.png")
    assert [run.path.name for run in select(root)] == ["other", "a", "none", "odd"]
    assert "its run is left out" in caplog.text


def test_the_table_marks_every_score(root: Path) -> None:
    rows, notes = run_table(select(root, sort="score"), root)
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


def test_the_letter_after_z_is_aa(root: Path) -> None:
    (run,) = select(root, ["a"])
    scores = [replace(run.scores[0], spread_over=str(i)) for i in range(54)]
    letters = Footnotes(scores)
    assert [letters.of(scores[i]) for i in (0, 25, 26, 51, 52)] == ["a", "z", "aa", "az", "ba"]


def test_the_list_as_json(root: Path) -> None:
    listed = json.loads(as_json(select(root)))
    assert [run["headline"] and run["headline"]["value"] for run in listed] == [1.0, 30.0, 20.0, None, None]
    assert listed[1]["path"] == str(root / "b")
    assert listed[1]["scores"][0]["reference"]["split"] == "train"


def test_differences_of_settings() -> None:
    one = OmegaConf.create({"a": {"b": 1, "c": [1, 2]}, "same": 3, "gone": None})
    other = OmegaConf.create({"a": {"b": 2, "c": [1, 2]}, "same": 3, "new": True})
    assert differences([one, other]) == [["a.b", "1", "2"], ["gone", "null", "-"], ["new", "-", "True"]]
    assert differences([one, one, other])[0] == ["a.b", "1", "1", "2"]


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (125, "2 min"), (7200, "2 h"), (3 * 86400, "3 d")])
def test_age(seconds: float, text: str) -> None:
    assert age(RunSummary(path=Path(), name="x", last_activity=1000.0), now=1000.0 + seconds) == text
    assert age(RunSummary(path=Path(), name="x")) == "-"
