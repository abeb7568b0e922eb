"""A run's summary: what it takes from which file, and that no file can break it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cifargan.report.summary import summary_of
from cifargan.runs.directory import RunDirectory

Record = Callable[..., dict[str, Any]]


def test_everything_that_a_run_says(make_run: Callable[..., Path], record: Record) -> None:
    scores = [
        record(value=30.0, step=100),
        record(value=25.0, step=150),
        record(value=28.0, step=200),
        record(value=9.0, step=200, class_name="cat", n=10),
        record(value=21.5, step=200, images=500, n=500),
    ]
    folder = make_run(records=scores, overrides=("experiment=biggan", "seed=7"))
    run = summary_of(folder)
    assert (run.path, run.name, run.status, run.started) == (folder, "biggan", "finished", "2026-11-20T10:00:00+0000")
    assert (run.step, run.steps, run.seed, run.device, run.images_per_s) == (200, 200, 7, "cpu (x86_64)", 50.0)
    assert run.overrides == ("experiment=biggan", "seed=7")
    assert run.last_activity == 1100.0
    assert run.age(now=1160.0) == 60.0
    assert run.best is not None
    assert (run.best.key, run.best.value, run.best.step) == ("fid_n100_train", 25.0, 150)
    assert run.best.protocol.endswith("lowest of the training")
    assert [(score.key, score.value) for score in run.scores] == [("fid_n500_train", 21.5)]
    assert [score.value for score in run.history] == [30.0, 25.0, 28.0]
    assert run.headline == run.scores[0]


def test_the_newest_start_counts(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    for number, steps in ((2, 500), (10, 900)):
        again = folder / f".hydra_{number}"
        again.mkdir()
        (again / "config.yaml").write_text(yaml.safe_dump({"trainer": {"steps": steps}}))
        (again / "overrides.yaml").write_text(yaml.safe_dump([f"trainer.steps={steps}"]))
    assert (summary_of(folder).steps, summary_of(folder).overrides) == (900, ("trainer.steps=900",))
    # A start that was cut off while it wrote its configuration.
    (folder / ".hydra_10" / "config.yaml").write_text("{")
    assert summary_of(folder).steps == 500


def test_a_run_is_running_as_long_as_its_process_lives(make_run: Callable[..., Path]) -> None:
    folder = make_run(status="running")
    with RunDirectory(folder).lock():
        assert summary_of(folder).status == "running"
    assert summary_of(folder).status == "interrupted"


def test_a_running_run_is_as_far_as_its_last_log_point(make_run: Callable[..., Path]) -> None:
    folder = make_run(status="running")
    (folder / "status.json").write_text(json.dumps({"status": "running", "step": 0, "time": 1.0}))
    assert summary_of(folder).step == 200


def test_speed_is_the_median_of_the_last_log_points(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    speeds = [1000.0] * 30 + [10.0, 500.0, *[12.0] * 8]
    lines = [{"step": i, "speed/images_per_s": speed} for i, speed in enumerate(speeds)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert summary_of(folder).images_per_s == 12.0


def test_only_the_end_of_a_long_log_is_read(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    lines = [{"step": i, "speed/images_per_s": 1.0, "filler": "x" * 1000} for i in range(600)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert (summary_of(folder).step, summary_of(folder).images_per_s) == (599, 1.0)


def test_names_cannot_act_on_a_terminal(make_run: Callable[..., Path]) -> None:
    folder = make_run(config={"name": "a\x1b[2Jb"}, device="x\ny", overrides=("seed=1\x07",))
    run = summary_of(folder)
    assert (run.name, run.device, run.overrides) == ("a\\x1b[2Jb", "x\\ny", ("seed=1\\x07",))


GARBAGE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'"text"',
    b'{"records": 3, "sessions": {"a": 1}, "status": ["x"], "step": "12"}',
    b'{"sessions": [1, {"started": 5, "seed": [], "device": {}}], "status": {"a": 1}, "time": "x", "step": -4}',
    b'{"records": [{"metric": "fid"}, {"value": NaN, "metric": "fid", "n": 1}], "step": 1e400, "time": NaN}',
    b'{"step": 3, "time": 1e999, "speed/images_per_s": "fast"}\n{"step": true}\n{"step": 2.5}\n3\n',
    b"name: ${oc.env:HOME}",
    b"a: &a [1]\nb: [*a, *a]\n? [1, 2]\n: 3\n",
    b"!!python/object/apply:os.system ['true']",
    b"trainer: 5\nevaluator: [1]\nname: {a: 1}\nseed: -3\n",
]


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize(
    "file",
    [
        "evaluation.json",
        "metrics.jsonl",
        "status.json",
        "provenance.json",
        ".hydra/config.yaml",
        ".hydra/overrides.yaml",
    ],
)
def test_no_file_breaks_it(make_run: Callable[..., Path], record: Record, file: str, garbage: bytes) -> None:
    folder = make_run(records=[record()])
    (folder / file).write_bytes(garbage)
    run = summary_of(folder)
    assert run.status in ("finished", "unknown")
    assert run.step in (200, 3)
    assert run.name in ("biggan", "run")


@pytest.mark.parametrize("file", ["evaluation.json", "status.json", "metrics.jsonl", ".hydra/config.yaml"])
def test_lists_in_lists_without_end(make_run: Callable[..., Path], file: str) -> None:
    folder = make_run()
    (folder / file).write_bytes(b"[" * (300 if file.endswith("yaml") else 100_000))
    assert summary_of(folder).device == "cpu (x86_64)"


def test_an_empty_folder_is_an_unknown_run(tmp_path: Path) -> None:
    run = summary_of(tmp_path)
    assert (run.name, run.status, run.step, run.steps, run.best) == (tmp_path.name, "unknown", 0, None, None)
    assert (run.scores, run.images_per_s, run.last_activity) == ((), None, 0.0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("file", ["status.json", "metrics.jsonl", "samples/step_000000001.png"])
def test_a_pipe_is_not_waited_for(make_run: Callable[..., Path], file: str) -> None:
    folder = make_run()
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    run = summary_of(folder)
    assert (run.path, run.name, run.status, run.step) == (folder, "run", "unknown", 0)


def test_reading_runs_takes_no_torch() -> None:
    program = "import sys, cifargan.report.summary; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", program], check=False).returncode == 0
