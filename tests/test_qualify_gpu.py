"""The qualification of a GPU: its time, what it keeps over several calls, and the trainings that it stops."""

import argparse
import json
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cifargan.config import parse, plain
from cifargan.schema import conf_dir

POINT = '{"step": 10, "speed/steps_per_s": 5.0}\n'


@pytest.fixture
def now(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which passes by sleeping alone."""
    now = [0.0]
    monkeypatch.setattr(script.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(script.time, "sleep", lambda _: now.__setitem__(0, now[0] + 100.0))
    return now


@pytest.fixture
def begin(script: ModuleType, tmp_path: Path) -> Callable[[], Any]:
    """A function that begins a call of 9 minutes."""
    options = {"out": tmp_path, "small": True, "device": "cpu", "samples": 1, "minutes": 9.0}
    others = {"data_root": None, "leave_after": None, "only": "dcgan"}
    return lambda: script.Qualification(argparse.Namespace(**options, **others))


def test_its_trainings_fit_into_the_time(script: ModuleType) -> None:
    recipes = {path.stem for path in (conf_dir() / "experiment").glob("*.yaml")}
    assert set(script.TRAININGS) == recipes - {"quickstart", "biggan_fast"}
    assert 15 < sum(script.TRAININGS.values()) < 20


@pytest.mark.parametrize("recipe", ["biggan_lecam_diffaug", "cdcgan_concat", "csagan_wgan", "dcgan64"])
def test_narrow_recipes_compose(script: ModuleType, recipe: str) -> None:
    narrow = script.narrow(recipe)
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = compose("train", [f"experiment={recipe}", "device=cpu", "evaluator=none", *narrow])
    parse(OmegaConf.create(plain(config)))


def test_a_later_call_skips_what_has_a_finding(
    script: ModuleType,
    begin: Callable[[], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    now: list[float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[str] = []

    def run(command: list[str], *, timeout: float, **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command[3])
        if len(calls) == 2:
            now[0] += timeout
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setattr(script, "machine", lambda: {"device": "none"})
    monkeypatch.setattr(script.Qualification, "train", lambda _, name: {"step": 7})
    first = begin()
    first.deadline = 10.0  # ends the second benchmark
    first.run()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["stage"] for line in lines] == ["machine", "tests", "floor", "bench biggan_original"]
    assert lines[-1]["exit"] == 0
    begin().run()
    assert calls == ["bench", "bench", "bench", "bench", "runs"]
    more = [json.loads(line)["stage"] for line in capsys.readouterr().out.splitlines()]
    assert more == ["bench biggan_lecam_diffaug", "bench dcgan", "train dcgan", "report"]
    file = tmp_path / "findings.jsonl"
    file.write_text(file.read_text() + '{"stage": "cut sh')
    begin().run()
    assert capsys.readouterr().out == ""


def test_a_command_that_takes_too_long_is_a_finding(
    script: ModuleType, begin: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: list[float]
) -> None:
    def run(command: list[str], *, timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(script.subprocess, "run", run)
    assert begin().cifargan("sample", limit=10.0, log=tmp_path / "log")["exit"] == script.TIMED_OUT


def test_curves_and_scores(script: ModuleType, tmp_path: Path) -> None:
    assert script.trained_seconds(tmp_path) == (0.0, 0.0)
    (tmp_path / "metrics.jsonl").write_text(
        POINT + '{"step": 20, "records": []}\n{"step": 30, "speed/steps_per_s": 10.0}\n{'
    )
    assert script.trained_seconds(tmp_path) == (4.0, 10.0)
    file = tmp_path / "evaluation.json"
    assert script.scores_of(file) == {}
    records = [
        {"metric": "fd", "value": value, "n": 200, "class_name": name} for value in (9.0, 7.0) for name in (None, "cat")
    ]
    file.write_text(json.dumps({"records": records}))
    assert script.scores_of(file) == {"fd": 7.0, "n": 200}


class Training:
    """A process that logs one step, and ends with `code` when it is asked to; None: it does not react."""

    def __init__(self, directory: Path, code: int | None, *, alone: bool) -> None:
        self.directory, self.code = directory, code
        self.returncode = code if alone else None
        self.polls = 0

    def poll(self) -> int | None:
        self.polls += 1
        if self.polls == 2:
            (self.directory / "metrics.jsonl").write_text(POINT)
        return self.returncode

    def terminate(self) -> None:
        self.returncode = self.code

    def wait(self, timeout: float | None = None) -> None:
        if self.returncode is None and timeout is not None:
            raise subprocess.TimeoutExpired("train", timeout)

    def kill(self) -> None:
        self.returncode = -9


@pytest.mark.parametrize(
    ("code", "alone", "saved", "minutes", "ended"),
    [
        (143, False, True, 9, None),
        (None, False, True, 9, None),  # killed, but it has a checkpoint
        (None, False, False, 9, "exit -9: last words"),
        (1, True, True, 9, "exit 1: last words"),
        (143, False, True, 1, "OutOfTimeError"),
    ],
)
def test_a_training_is_stopped_when_its_time_is_over(
    code: int | None,
    alone: bool,
    saved: bool,
    minutes: int,
    ended: str | None,
    script: ModuleType,
    begin: Callable[[], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    now: list[float],
) -> None:
    (tmp_path / "checkpoints").mkdir()
    if saved:
        (tmp_path / "checkpoints" / "one").touch()
    (log := tmp_path / "log").write_text("words\nlast words\n\n")
    monkeypatch.setattr(script.subprocess, "Popen", lambda *_, **__: Training(tmp_path, code, alone=alone))
    qualification = begin()
    qualification.deadline = 60.0 * minutes
    out_of_time = ended == "OutOfTimeError"
    with pytest.raises(script.OutOfTimeError) if out_of_time else nullcontext():
        assert qualification.train_for(50.0, [], tmp_path, log) == ended


@pytest.mark.parametrize("names", [["GAN_10_Generated_cat.png", "overview.png"], ["GAN_100_Generated.png"]])
def test_a_sheet_is_kept_with_and_without_classes(
    names: list[str], begin: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "status.json").write_text('{"step": 7}')
    qualification = begin()

    def cifargan(command: str, *arguments: str, **_: object) -> dict[str, Any]:
        if command == "sample":
            folder = Path(arguments[arguments.index("--out") + 1])
            folder.mkdir(parents=True)
            for name in names:
                (folder / name).write_text(name)
        return {"exit": 0}

    monkeypatch.setattr(qualification, "cifargan", cifargan)
    assert qualification.judge("dcgan", tmp_path, tmp_path / "log") == {
        "exit": 0,
        "step": 7,
        "trained_s": 0,
        "scores": {},
    }
    assert (qualification.summary / "dcgan-truncation_1.0.png").read_text() == names[-1]
    assert (qualification.summary / "dcgan-truncation_0.5.png").read_text() == names[-1]
