"""A few seconds of the fuzzer: it finds nothing, and it would find something."""

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module("fuzzing.judge")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["configs", "images", "npz"])
def test_a_hundred_cases(judge: ModuleType, tmp_path: Path, name: str) -> None:
    inputs: Any = import_module("fuzzing.parts").Inputs(tmp_path)
    inputs.prepare([name])
    tally = judge.fuzz(name, inputs.parts()[name], seed=0, cases=100, until=float("inf"), out=tmp_path / "findings")
    assert tally.findings == []
    assert tally.refused > 50
    assert tally.refused + tally.worked == tally.cases == 100


@pytest.mark.slow
def test_cases_that_are_guided_by_coverage(judge: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    guided: Any = import_module("fuzzing.guided")
    tally = guided.run("overrides_yaml", seed=0, cases=100, seconds=60.0, out=tmp_path)
    assert tally["cases"] == 100
    assert tally["findings"] == []
    assert tally["refused"] > 50
    assert tally["worked"] > 0


def test_what_is_found_is_kept_as_small_as_it_can_be(judge: ModuleType, tmp_path: Path) -> None:
    def make(seeds: list[int]) -> None:
        if any(seed % 2 for seed in seeds[1:]):
            raise KeyError("odd")

    part = judge.Part(make, most=4)
    tally = judge.fuzz("toy", part, seed=3, cases=20, until=float("inf"), out=tmp_path)
    assert 0 < len(tally.findings) < 20
    kept = list(tmp_path.glob("toy_3_*.json"))
    assert len(kept) == len(tally.findings)
    assert all(len(json.loads(file.read_text())["seeds"]) == 2 for file in kept)


def test_a_hang_is_a_finding(judge: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "PATIENCE", 0.05)

    def hang() -> None:
        while True:
            pass

    assert judge.outcome(hang) == ("finding", "took more than 0.05 s")


def test_an_error_without_a_line_is_a_finding(judge: ModuleType) -> None:
    assert judge.outcome(lambda: sys.exit(1)) == ("finding", "exit 1")
    assert judge.outcome(lambda: 1 / 0) == ("finding", "ZeroDivisionError: division by zero")
    assert judge.outcome(lambda: bytearray(2**62))[0] == "finding"
