"""The readers of strangers' files: nothing runs, nothing is taken for what it is not."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cifargan.report.reading import TAIL, config_of, log_points, number, whole
from cifargan.runs.directory import RunDirectory


@pytest.mark.parametrize(
    ("value", "as_number", "as_whole"),
    [
        (3, 3.0, 3),
        (3.0, 3.0, 3),
        (2.5, 2.5, None),
        (-1, -1.0, None),
        (True, None, None),
        ("3", None, None),
        (math.inf, None, None),
        (math.nan, None, None),
        (10**400, None, None),
        (None, None, None),
    ],
)
def test_what_is_a_number(value: Any, as_number: float | None, as_whole: int | None) -> None:
    assert (number(value), whole(value)) == (as_number, as_whole)


def test_a_configuration_runs_nothing(make_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_run()
    (folder / ".hydra" / "config.yaml").write_text(f"!!python/object/apply:os.mkdir ['{tmp_path / 'made'}']")
    assert not config_of(RunDirectory(folder))
    assert not (tmp_path / "made").exists()


def test_the_end_of_a_log_is_enough(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    line = json.dumps({"step": 1, "filler": "x" * 980}) + "\n"
    (folder / "metrics.jsonl").write_text(line * 600)
    assert len(list(log_points(RunDirectory(folder)))) == 600
    assert len(list(log_points(RunDirectory(folder), last=TAIL))) == TAIL // len(line)
