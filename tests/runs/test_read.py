"""The summary of a run from its files, and damaged files."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cifargan.evaluation.records import Record, formatted
from cifargan.runs.directory import RunDirectory
from cifargan.runs.read import TAIL, config_of, headline, log_points, number, record_from, summary_of, whole

MakeRun = Callable[..., Path]
Line = Callable[..., dict[str, Any]]


def known(flat: dict[str, Any]) -> Record:
    found = record_from(flat)
    assert found is not None
    return found


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
def test_numbers_in_json(value: Any, as_number: float | None, as_whole: int | None) -> None:
    assert (number(value), whole(value)) == (as_number, as_whole)


def test_a_configuration_runs_no_code(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run()
    (folder / ".hydra" / "config.yaml").write_text(f"!!python/object/apply:os.mkdir ['{tmp_path / 'made'}']")
    assert not config_of(RunDirectory(folder))
    assert not (tmp_path / "made").exists()


def test_only_the_end_of_a_long_log_is_read(make_run: MakeRun) -> None:
    folder = make_run()
    lines = [{"step": i, "speed/images_per_s": 1.0, "filler": "x" * 1000} for i in range(600)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(list(log_points(RunDirectory(folder)))) == 600
    assert len(list(log_points(RunDirectory(folder), last=TAIL))) < TAIL // 1000
    assert (summary_of(folder).step, summary_of(folder).images_per_s) == (599, 1.0)


def test_the_conditions_of_a_score_in_words(record: Line) -> None:
    assert known(record(n=10_000, images=50_000)).conditions() == (
        "10,000 of 50,000 images, against digits train (1,498, cd0f4874), inception 6726825d, TF1 bilinear to 299, "
        "float32, standing batch norm, ema weights, no truncation"
    )


def test_what_decides_a_score_is_in_its_conditions(record: Line) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"n": 50},
        {"n": 50, "images": 50},
        {"reference_name": "cifar10"},
        {"reference_split": "test"},
        {"reference_n": 10},
        {"reference_fingerprint": "other"},
        {"reference_name": None},
        {"extractor": "dinov2"},
        {"weights_hash": "other"},
        {"resize": "none"},
        {"dtype": "bfloat16"},
        {"batch_norm": "running"},
        {"weights": "raw"},
        {"truncation": 0.5},
        {"checkpoint": "best"},
        {"spread_over": "100 subsets of 50"},
    ]
    assert len({known(record(**change)).group for change in changes}) == len(changes)


def test_what_scores_compare_is_not_in_its_conditions(record: Line) -> None:
    changes: list[dict[str, Any]] = [{"step": 7}, {"seed": 9}, {"subject": "outputs/x"}, {"value": 3.0}]
    assert {known(record(**change)).group for change in changes} == {known(record()).group}


def test_a_record_is_read_back_as_it_was_written(record: Line) -> None:
    flat = record(metric="kid", value=0.01234567, spread=0.000801, spread_over="100 subsets", class_name="cat")
    assert known(flat).flat() == flat
    assert formatted(known(flat)) == "0.0123 ± 0.0008"


def test_the_summary_of_a_run(make_run: MakeRun, record: Line) -> None:
    scores = [
        record(value=30.0, step=100),
        record(value=25.0, step=150),
        record(value=28.0, step=200),
        record(value=9.0, step=200, images=500, class_name="cat", n=10),
        record(value=21.5, step=200, images=500, n=500),
    ]
    folder = make_run(records=scores, overrides=("experiment=biggan", "seed=7"))
    run = summary_of(folder)
    assert (run.path, run.name, run.status, run.started) == (folder, "biggan", "finished", "2026-11-20T10:00:00+0000")
    assert (run.step, run.steps, run.seed, run.device, run.images_per_s) == (200, 200, 7, "cpu (x86_64)", 50.0)
    assert run.overrides == ("experiment=biggan", "seed=7")
    assert run.last_activity == 1100.0
    assert run.best is not None
    assert (run.best.key, run.best.value, run.best.protocol.step) == ("fid_n100_train", 25.0, 150)
    assert run.best.conditions().endswith("best-scoring checkpoint")
    assert [(score.key, score.value) for score in run.scores] == [("fid_n500_train", 21.5)]
    assert [score.value for score in run.history] == [30.0, 25.0, 28.0]
    assert [score.key for score in run.class_scores] == ["fid_n10_train/cat"]
    assert run.headline == run.scores[0]


def test_the_best_score_is_by_the_monitored_metric(make_run: MakeRun, record: Line) -> None:
    values = ((100, 30.0, 0.2), (150, 25.0, 0.6), (200, 28.0, 0.5))
    scores = [
        line
        for step, fid, recall in values
        for line in (
            record(metric="recall", kind="recall", better="higher", value=recall, step=step),
            record(kind="fid", value=fid, step=step),
        )
    ]
    for metrics, best in ((["recall", "fid"], 0.6), (["fid", "recall"], 25.0), (["mine"], None)):
        run = summary_of(
            make_run(metrics[0], records=scores, config={"evaluator": {"samples": 100, "metrics": metrics}})
        )
        assert (run.best and run.best.value) == best


def test_scores_of_other_protocols(make_run: MakeRun, record: Line) -> None:
    records = [
        record(value=5.0, step=50, images=20, n=20),
        record(value=30.0, step=100),
        record(value=29.0, step=100, metric="kid"),
        record(value=31.0, step=150),
    ]
    best = summary_of(make_run(records=records)).best  # by the protocol that was used last
    assert best is not None
    assert (best.key, best.value) == ("fid_n100_train", 30.0)
    # With as many final samples as in training, the last scores are the final ones and end the history.
    config = {"evaluator": {"samples": 100, "final_samples": 100}}
    finished = summary_of(make_run("finished", records=[records[1], records[3]], config=config))
    assert [score.value for score in finished.scores] == [31.0]
    assert [score.value for score in finished.history] == [30.0, 31.0]
    stopped = make_run("stopped", records=[records[1], records[3]], config=config, status="interrupted")
    assert summary_of(stopped).scores == ()


def test_a_run_is_ranked_by_an_untruncated_distance(record: Line) -> None:
    truncated, untruncated = known(record(truncation=0.5, value=1.0)), known(record(value=2.0))
    best, gap, recall = known(record(value=3.0)), known(record(metric="fid_gap")), known(record(metric="recall"))
    assert headline(best, [recall, gap, truncated, untruncated]) == untruncated
    assert headline(best, [recall, gap, truncated]) == best
    assert headline(None, [recall, gap, truncated]) == truncated
    assert headline(None, [recall, gap]) is None


def test_the_newest_start_counts(make_run: MakeRun) -> None:
    folder = make_run()
    for n, steps in ((2, 500), (10, 900)):
        again = folder / f".hydra_{n}"
        again.mkdir()
        (again / "config.yaml").write_text(yaml.safe_dump({"trainer": {"steps": steps}}))
        (again / "overrides.yaml").write_text(yaml.safe_dump([f"trainer.steps={steps}"]))
    assert (summary_of(folder).steps, summary_of(folder).overrides) == (900, ("trainer.steps=900",))
    # A start that was killed while it wrote its configuration.
    (folder / ".hydra_10" / "config.yaml").write_text("{")
    assert summary_of(folder).steps == 500


def test_a_run_is_running_as_long_as_its_process_lives(make_run: MakeRun) -> None:
    folder = make_run(status="running")
    (folder / "status.json").write_text(json.dumps({"status": "running", "step": 0, "time": 1.0}))
    assert summary_of(folder).step == 200  # of its last log point
    with RunDirectory(folder).lock():
        assert summary_of(folder).status == "running"
    assert summary_of(folder).status == "interrupted"


def test_speed_is_the_median_of_the_last_log_points(make_run: MakeRun) -> None:
    folder = make_run()
    speeds = [1000.0] * 30 + [10.0, 500.0, *[12.0] * 8]
    lines = [{"step": i, "speed/images_per_s": speed} for i, speed in enumerate(speeds)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert summary_of(folder).images_per_s == 12.0


def test_names_hold_no_control_characters(make_run: MakeRun) -> None:
    run = summary_of(make_run(config={"name": "a\x1b[2Jb"}, device="x\ny", overrides=("seed=1\x07",)))
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
FILES = ("evaluation.json", "metrics.jsonl", "status.json", "provenance.json", ".hydra/config.yaml")


@pytest.mark.parametrize("file", [*FILES, ".hydra/overrides.yaml"])
def test_no_file_breaks_it(make_run: MakeRun, record: Line, file: str) -> None:
    folder = make_run(records=[record()])
    for garbage in GARBAGE:
        (folder / file).write_bytes(garbage)
        run = summary_of(folder)
        assert run.status in ("finished", "unknown"), garbage
        assert run.step in (200, 3), garbage
        assert run.name in ("biggan", "run"), garbage
    if file not in ("provenance.json", ".hydra/overrides.yaml"):
        (folder / file).write_bytes(b"[" * (300 if file.endswith("yaml") else 100_000))
        assert summary_of(folder).device == "cpu (x86_64)"


def test_an_empty_folder_is_an_unknown_run(tmp_path: Path) -> None:
    run = summary_of(tmp_path)
    assert (run.name, run.status, run.step, run.steps, run.best) == (tmp_path.name, "unknown", 0, None, None)
    assert (run.scores, run.images_per_s, run.last_activity) == ((), None, 0.0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.parametrize("file", ["status.json", "metrics.jsonl", "samples/step_000000001.png"])
def test_a_run_with_a_pipe_is_not_read(make_run: MakeRun, file: str) -> None:
    folder = make_run()
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    run = summary_of(folder)
    assert (run.path, run.name, run.status, run.step) == (folder, "run", "unknown", 0)
