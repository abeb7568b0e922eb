"""Runs that earlier versions left behind, one of each checkpoint format: they are gone on with and sampled from.

`old_runs/` holds two steps of a narrow conditional DCGAN with LeCam on 16x16 digits, each as a version with that format wrote
it: an early one of format 1, the last of format 2. The file of the present format stays, too: whoever changes what a checkpoint
holds needs a new format.
"""

import tarfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from cifargan.runs.checkpoint import FORMAT, load

Command = Callable[..., CompletedProcess[str]]
OLD_RUNS = Path(__file__).parent / "old_runs"


@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_a_run_of_each_format_goes_on_and_is_sampled_from(number: int, command: Command, tmp_path: Path) -> None:
    with tarfile.open(OLD_RUNS / f"format_{number}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    run = tmp_path / f"format_{number}"
    before = load(run / "checkpoints" / "step_000000002.pt")
    went_on = command("train", f"resume={run}", "trainer.steps=4")
    assert went_on.returncode == 0, went_on.stderr
    after = load(run / "checkpoints" / "step_000000004.pt")
    assert (after["step"], after["stream"]["images_seen"]) == (4, 2 * before["stream"]["images_seen"])
    assert after["generator"].keys() == before["generator"].keys()
    moments = after["g_optimizer"]["state"][0]
    assert int(moments["step"]) == 4  # and so its averages went on, too
    sampled = command("sample", str(run), "--per-class", "1", "--out", str(tmp_path / "sheets"))
    assert sampled.returncode == 0, sampled.stderr
    assert len(list((tmp_path / "sheets").glob("*.png"))) == 11
