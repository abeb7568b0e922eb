"""A few seconds of the fuzzer: it finds nothing, and it would find something."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"


@pytest.fixture
def fuzzer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fuzz", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", ["configs", "images", "npz"])
def test_a_hundred_cases(fuzzer: ModuleType, tmp_path: Path, name: str) -> None:
    part = fuzzer.Inputs(tmp_path).parts()[name]
    tally = fuzzer.fuzz(name, part, seed=0, cases=100, until=float("inf"), out=tmp_path / "findings")
    assert tally.findings == []
    assert tally.refused > 50
    assert tally.refused + tally.worked == tally.cases == 100


def test_what_is_found_is_kept_as_small_as_it_can_be(fuzzer: ModuleType, tmp_path: Path) -> None:
    def make(seeds: list[int]) -> None:
        if any(seed % 2 for seed in seeds[1:]):
            raise KeyError("odd")

    part = fuzzer.Part(make, most=4)
    tally = fuzzer.fuzz("toy", part, seed=3, cases=20, until=float("inf"), out=tmp_path)
    assert 0 < len(tally.findings) < 20
    kept = list(tmp_path.glob("toy_3_*.json"))
    assert len(kept) == len(tally.findings)
    assert all(len(fuzzer.json.loads(file.read_text())["seeds"]) == 2 for file in kept)


def test_a_hang_is_a_finding(fuzzer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzzer, "PATIENCE", 0.05)

    def make(seeds: list[int]) -> None:
        while True:
            pass

    assert fuzzer.outcome(fuzzer.Part(make), [0]) == ("finding", "took more than 0.05 s")
