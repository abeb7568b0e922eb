"""The drill itself, with a handful of kills: every fault is survived, and its table says so."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRILL = Path(__file__).parents[1] / "scripts" / "fault_drill.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_every_fault_of_a_short_drill_is_survived(tmp_path: Path) -> None:
    table = tmp_path / "drill.json"
    ran = subprocess.run(
        [sys.executable, str(DRILL), "--kills", "6", "--seed", "1", "--out", str(table)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    rows = json.loads(table.read_text())["rows"]
    assert sum(int(row["tried"]) for row in rows if row["fault"].startswith("kill -9")) == 6
    assert all(row["tried"] == row["survived"] for row in rows)
    # At most what had been done since the last checkpoint, or the one before where that was damaged.
    assert all(int(row["steps lost, mean / most"].split(" / ")[1]) <= 4 for row in rows)
