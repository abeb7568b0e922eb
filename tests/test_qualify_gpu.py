"""The qualification of a GPU: its budget over several calls, and what it asks of the command line."""

import argparse
import json
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cifargan.config import parse, plain
from cifargan.schema import conf_dir


def test_time_spent_and_work_done_outlive_a_call(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(script.time, "monotonic", lambda: now[0])
    first = script.Budget(tmp_path / "state.json", total=60.0, call=20.0)
    now[0] += 15
    assert (first.spent, first.left) == (15.0, 5.0)
    first.note("tests", exit=0)
    second = script.Budget(tmp_path / "state.json", total=60.0, call=50.0)
    assert second.done("tests")
    assert not second.done("bench dcgan")
    now[0] += 10
    assert (second.spent, second.left) == (25.0, 35.0)


def test_its_trainings_fit_into_the_time(script: ModuleType) -> None:
    recipes = {path.stem for path in (conf_dir() / "experiment").glob("*.yaml")}
    assert set(script.TRAININGS) == recipes - {"quickstart", "biggan_fast"}
    # The rest of 25 minutes goes to tests, benchmark, starts and scores.
    assert 15 < sum(script.TRAININGS.values()) < 20


@pytest.mark.parametrize("recipe", ["biggan_lecam_diffaug", "cdcgan_concat", "csagan_wgan", "dcgan64"])
def test_narrow_recipes_compose(script: ModuleType, recipe: str) -> None:
    narrow = script.narrow(recipe)
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = compose("train", [f"experiment={recipe}", "device=cpu", "evaluator=none", *narrow])
    parse(OmegaConf.create(plain(config)))


def test_curves_leave_breaks_and_evaluations_out(script: ModuleType, tmp_path: Path) -> None:
    lines = [
        {"step": 10, "time": 0.0, "speed/steps_per_s": 5.0},
        {"step": 10, "time": 90.0, "records": [{"metric": "fd_lite0", "value": 3.0, "class_name": None}]},
        {"step": 30, "time": 5000.0, "speed/steps_per_s": 10.0},
        {"step": 30, "time": 5001.0, "records": [{"metric": "fd_lite0", "value": 2.0, "class_name": "cat"}]},
        {"step": 30, "time": 5002.0, "records": [{"metric": "fd_lite0", "value": 1.0, "class_name": None}]},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert script.curve(tmp_path) == [
        {"seconds": 2.0, "step": 10, "fd_lite0": 3.0},
        {"seconds": 4.0, "step": 30, "fd_lite0": 1.0},
    ]
    assert script.last_rate(tmp_path) == 10.0


def scored(*values: float, n: int = 200) -> str:
    """An evaluation.json in which the whole and a class were scored, again and again."""
    records = [
        {"metric": "fd_lite0_64", "value": value, "n": n, "class_name": name}
        for value in values
        for name in (None, "cat")
    ]
    return json.dumps({"records": records})


def test_the_newest_score_of_all_classes_counts(script: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "evaluation.json"
    assert script.scores_of(file) == {}
    file.write_text(scored(9.0, 7.0))
    assert script.scores_of(file) == {"fd_lite0_64": 7.0, "n": 200}
    file.write_text("{")
    assert script.scores_of(file) == {}


@pytest.mark.parametrize(("n", "level"), [(200, 40.0), (10_000, None)])
def test_real_images_are_a_floor_for_as_many_generated_ones(
    n: int, level: float | None, script: ModuleType, options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[float | None] = []
    monkeypatch.setattr(script, "draw", lambda _, __, floor: drawn.append(floor))
    qualification = script.Qualification(options)
    qualification.budget.note("floor", scores={"fd_lite0_64": 40.0, "n": n})
    qualification.sum_up()
    assert drawn == [level]


def test_the_table_is_in_the_order_of_distance(script: ModuleType) -> None:
    done = {
        "tests": {"exit": 0},
        "train dcgan": {"scores": {"fd_lite0_64": 900.0, "n": 200}, "step": 1200, "seconds": 90.0},
        "train biggan": {
            "scores": {"fd_lite0_64": 300.0, "recall_lite0_64": 0.25, "n": 200},
            "step": 7,
            "seconds": 6.0,
        },
        "train acbiggan": {"scores": {}, "step": 0, "seconds": 1.0},
        "floor": {"scores": {"fd_lite0_64": 44.0, "n": 10_000}},
    }
    rows = script.table(done)
    assert [row.split()[0] for row in rows] == ["floor", "biggan", "dcgan"]
    assert "fd_lite0_64 300, recall_lite0_64 0.25  (7 steps, 0.1 min)" in rows[1]


def test_curves_are_drawn_with_and_without_a_floor(script: ModuleType, tmp_path: Path) -> None:
    points = {"dcgan": [{"seconds": 60.0, "step": 1, "fd": 900.0}, {"seconds": 120.0, "step": 2, "fd": 700.0}]}
    sizes = []
    for floor in (None, 40.0):
        script.draw(points, tmp_path / "curves.png", floor)
        sizes.append((tmp_path / "curves.png").stat().st_size)
    assert sizes[1] != sizes[0] > 0


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    """What the command line says."""
    return argparse.Namespace(
        out=tmp_path / "out",
        small=True,
        device="cpu",
        samples=1,
        data_root=None,
        minutes=9.0,
        leave_after=None,
        only=None,
    )


class Deaf:
    """A training that heeds no signal but the last."""

    returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode

    def terminate(self) -> None: ...

    def wait(self, timeout: float) -> None:
        raise subprocess.TimeoutExpired("train", timeout)

    def kill(self) -> None:
        self.returncode = -9


@pytest.mark.parametrize("saved", [True, False])
def test_a_training_that_had_to_be_killed_counts_if_it_left_a_checkpoint(
    saved: bool, script: ModuleType, options: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, log = tmp_path / "run", tmp_path / "log"
    (directory / "checkpoints").mkdir(parents=True)
    if saved:
        (directory / "checkpoints" / "step_000000111.pt").touch()
    log.write_text("")
    qualification = script.Qualification(options)
    points = iter([0, 1, 1, 1])
    monkeypatch.setattr(script, "progress", lambda _: next(points))
    monkeypatch.setattr(script.subprocess, "Popen", lambda *_, **__: Deaf())
    facts = {"seconds": 0.0}
    with nullcontext() if saved else pytest.raises(script.EndedError):
        qualification.stretch([], [], 0.0, directory, log, facts)
    assert ("ended" in facts) is not saved


class Obedient(Deaf):
    """A training that ends at the first signal, by a handler of its own or because it had none yet."""

    def __init__(self, code: int) -> None:
        self.code = code

    def terminate(self) -> None:
        self.returncode = self.code

    def wait(self, timeout: float) -> None: ...


@pytest.mark.parametrize(
    ("code", "begun", "error"), [(143, True, None), (-15, False, "OutOfTimeError"), (1, True, "EndedError")]
)
def test_a_training_that_time_ends_is_gone_on_with_another_time(
    code: int,
    begun: bool,
    error: str | None,
    script: ModuleType,
    options: argparse.Namespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = tmp_path / "log"
    log.write_text("words")
    now = [0.0]
    monkeypatch.setattr(script.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(script.time, "sleep", lambda _: now.__setitem__(0, now[0] + 100.0))
    qualification = script.Qualification(options)
    points = iter([0, *([1] * 9 if begun else [0] * 9)])
    monkeypatch.setattr(script, "progress", lambda _: next(points))
    monkeypatch.setattr(script.subprocess, "Popen", lambda *_, **__: Obedient(code))
    facts = {"seconds": 0.0}
    with pytest.raises(getattr(script, error)) if error else nullcontext():
        qualification.stretch([], [], 1000.0, tmp_path, log, facts)
    assert ("ended" in facts) == (error == "EndedError")


@pytest.mark.parametrize(("left", "out_of_time"), [(100.0, False), (2.0, True), (0.5, True)])
def test_what_time_cut_short_is_done_again(
    left: float,
    out_of_time: bool,
    script: ModuleType,
    options: argparse.Namespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*_: object, timeout: float, **__: object) -> None:
        raise subprocess.TimeoutExpired("sample", timeout)

    now = [0.0]
    monkeypatch.setattr(script.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(script.subprocess, "run", run)
    qualification = script.Qualification(options)
    now[0] = 60 * options.minutes - left
    with pytest.raises(script.OutOfTimeError) if out_of_time else nullcontext():
        code, _ = qualification.call(["python", "-m", "cifargan", "sample"], 10.0, tmp_path / "log")
        assert code == 124


@pytest.mark.parametrize("names", [["GAN_10_Generated_cat.png", "overview.png"], ["GAN_100_Generated.png"]])
def test_a_sheet_is_kept_with_and_without_classes(
    names: list[str], script: ModuleType, options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "status.json").write_text('{"step": 7}')
    qualification = script.Qualification(options)

    def cifargan(command: str, *arguments: str, **_: object) -> tuple[int, float]:
        if command == "sample":
            folder = Path(arguments[arguments.index("--out") + 1])
            folder.mkdir(parents=True)
            for name in names:
                (folder / name).write_text(name)
        return 0, 1.0

    monkeypatch.setattr(qualification, "cifargan", cifargan)
    facts = qualification.judge("dcgan", run, tmp_path / "log")
    assert facts["sheets"] == ["dcgan-truncation_1.0.png", "dcgan-truncation_0.5.png"]
    assert (qualification.summary / "dcgan-truncation_0.5.png").read_text() == names[-1]
