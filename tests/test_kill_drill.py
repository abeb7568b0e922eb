"""The drill in fresh processes, with one kill: it ends in the same bits, and says so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

DRILL = Path(__file__).parents[1] / "scripts" / "kill_drill.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="kills a group of processes")
def test_a_killed_training_ends_in_the_bits_of_another() -> None:
    ran = subprocess.run(
        [sys.executable, str(DRILL), "--kills", "1", "--steps", "40", "--seed", "2"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    killed, summary = ran.stdout.splitlines()
    assert killed.startswith("killed after step ")
    assert summary.startswith("1 kills, at most ")
    assert "these differ: none; " in summary
