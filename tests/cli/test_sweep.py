"""`cifargan train -m`: its jobs and their folders, resuming it, and its result."""

import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from cifargan.cli.sweep import FILE, Jobs, Sweep, folder_of, jobs_in, plan, split_sweep
from cifargan.cli.sweep_summary import over_seeds, reason_of, summarise
from cifargan.errors import UserError
from cifargan.evaluation.records import FeatureSpace, Protocol, Record, ReferenceCard
from cifargan.runs.checkpoint import load
from cifargan.runs.directory import RunDirectory
from cifargan.runs.read import RunSummary
from cifargan.training.step import GANStep

Command = Callable[..., CompletedProcess[str]]
Play = Callable[[GANStep], dict[str, torch.Tensor]]


def statuses(sweep: Path) -> list[str]:
    return [job["status"] for job in json.loads((sweep / "summary.json").read_text())["jobs"]]


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "multirun.yaml"}


def test_the_jobs_are_all_combinations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    directory, jobs = plan(["hydra.x=1", "model=choice(dcgan,sagan)", "c='x,y'", "seed=range(0,2)"], resume=False)
    assert directory.parent == tmp_path / "outputs" / "sweeps"
    assert list(jobs.values()) == [
        (f"model={model}", "c='x,y'", f"seed={seed}") for model in ("dcgan", "sagan") for seed in (0, 1)
    ]
    assert list(jobs) == [folder_of(job) for job in jobs.values()]
    assert plan(["model=glob(dcgan*)"], resume=False)[1].keys() >= {folder_of(["model=dcgan"])}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lr=interval(0,1)"], r"lr=interval\(0,1\).*cifargan tune"),
        (["seed=1,1"], "is there twice"),
        (["seed=1,2", "hydra.sweep.dir=a\\\\b"], "backslash"),
    ],
)
def test_what_no_sweep_can_have(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan(overrides, resume=False)


def test_a_folder_is_a_function_of_what_its_job_trains() -> None:
    folder = folder_of(["seed=1", "output_root=x", "trainer.steps=2", "resume=r", "hydra.sweep.dir=s"])
    assert folder == folder_of(["trainer.steps=2", "seed=1"])
    assert folder.startswith("seed-1-")
    assert folder != folder_of(["trainer.steps=2", "seed=2"])
    assert re.fullmatch(r"[\w-]{1,80}", folder_of([f"init='../{'x' * 300}/é ü'", "a=[1,2]"]))


@pytest.mark.parametrize(
    ("overrides", "sweep", "message"),
    [
        (["sweep=resum"], True, "sweep=resum: did you mean resume?"),
        (["sweep=xyz"], True, "sweep=xyz: there is only sweep=resume"),
        (["sweep=resume"], False, "sweep=resume resumes a sweep, which takes -m"),
    ],
)
def test_sweep_with_a_typo(overrides: list[str], sweep: bool, message: str) -> None:
    with pytest.raises(UserError) as caught:
        split_sweep(overrides, sweep=sweep)
    assert str(caught.value).startswith(message)


def test_sweep_is_no_setting_of_hydras() -> None:
    assert split_sweep(["a=1", "sweep=resume", "b=2"], sweep=True) == (["a=1", "b=2"], True)
    assert split_sweep(["a=1", "sweep=null"], sweep=True) == (["a=1"], False)
    assert split_sweep(["a=1"], sweep=False) == (["a=1"], False)


def test_a_job_that_was_stopped_by_itself_leaves_its_sweep_undone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs: Jobs = {f"seed-{number}": (f"seed={number}",) for number in range(2)}
    runs = [RunDirectory(tmp_path / name) for name in jobs]
    for run in runs:
        run.path.mkdir()
        run.write_json("provenance.json", {"sessions": []})
    runs[0].set_status("finished", step=1)
    runs[1].set_status("interrupted", step=1)
    sweep = Sweep(lambda *_: pytest.fail("it only sums up"), ["cifargan train", "-m"], tmp_path, jobs)
    assert summarise(sweep) == 2
    assert capsys.readouterr().out.splitlines()[-1] == f"1 of 2 jobs finished, in {tmp_path}"
    assert statuses(tmp_path) == ["finished", "interrupted"]
    runs[1].set_status("finished", step=1)
    assert summarise(sweep) == 0


@pytest.mark.slow
def test_an_interrupted_sweep_resumes_and_failed_jobs_run_again(
    command: Command, quick: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play: Play = GANStep.iterate

    def troubled(gan: GANStep) -> dict[str, torch.Tensor]:
        if gan.schedule.batch_size == 2:
            raise ZeroDivisionError("division by zero")
        if gan.step == 1 and gan.schedule.batch_size == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return play(gan)

    def sizes() -> dict[int, Path]:
        jobs = json.loads((sweep / FILE).read_text())["jobs"]
        size = re.compile(r"trainer.batch_size=(\d+)")
        return {int(size.findall(" ".join(job["overrides"]))[0]): sweep / job["folder"] for job in jobs}

    monkeypatch.setattr(GANStep, "iterate", troubled)
    jobs = (*quick, "trainer.steps=4", "trainer.batch_size=2,5,3,4")
    ran = command("train", "-m", *jobs)
    assert ran.returncode == 130
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert statuses(sweep) == ["failed", "finished", "interrupted", "missing"]
    assert "ZeroDivisionError: division by zero" in ran.stdout
    assert not sizes()[4].exists()
    again = re.search(r"^resume with: cifargan (train .* sweep=resume)$", ran.stdout, re.MULTILINE)
    assert again
    assert f"hydra.sweep.dir={sweep}" in again[1]

    monkeypatch.setattr(GANStep, "iterate", play)
    before = content(sizes()[5])
    # In another order, and with another job.
    ran = command("train", "-m", *quick, "trainer.batch_size=6,3,5,4,2", "trainer.steps=4", *shlex.split(again[1])[-2:])
    assert ran.returncode == 0, ran.stderr
    assert f"{sweep}: 4 of 5 jobs remain" in ran.stderr
    assert list((tmp_path / "outputs" / "sweeps").iterdir()) == [sweep]
    assert statuses(sweep) == ["finished"] * 5
    assert content(sizes()[5]) == before
    sessions = json.loads((sizes()[3] / "provenance.json").read_text())["sessions"]
    assert [0 < session["first_step"] < 4 for session in sessions] == [False, True]

    # Bit for bit as a run that was not interrupted.
    assert command("train", *jobs[:-1], "trainer.batch_size=3", "hydra.run.dir=whole").returncode == 0
    one, other = (load(next((run / "checkpoints").glob("step_000000004*"))) for run in (sizes()[3], tmp_path / "whole"))
    for part in ("generator", "discriminator", "ema"):
        assert all(torch.equal(one[part][key], other[part][key]) for key in one[part])

    # Nothing is left to do.
    before = content(sweep)
    ran = command("train", "-m", *jobs, "sweep=resume")
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (0, f"5 of 5 jobs finished, in {sweep}")
    assert content(sweep) == before


def test_a_folder_with_a_sweep_takes_no_other(command: Command, quick: tuple[str, ...], tmp_path: Path) -> None:
    jobs = (*quick, r"hydra.sweep.dir='it\'s one'", "trainer.batch_size=0,-1")
    sweep = tmp_path / "it's one"
    for resume in ((), ("sweep=resume",)):
        ran = command("train", "-m", *jobs, *resume)
        assert (ran.returncode, statuses(sweep)) == (2, ["failed"] * 2)
        assert "trainer.batch_size=-1: must be at least 1" in ran.stdout
    ran = command("train", "-m", *jobs)
    assert ran.returncode == 2
    assert f"{sweep} already holds a sweep: resume it with sweep=resume" in ran.stderr


def test_which_sweep_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sweeps = tmp_path / "outputs" / "sweeps"
    for name, seeds in (("2026-01-01", "0,1"), ("2026-01-02", "1,0"), ("2026-01-03", "0,2")):
        (sweeps / name).mkdir(parents=True)
        jobs = plan([f"seed={seeds}", "model=dcgan"], resume=False)[1]
        (sweeps / name / FILE).write_text(json.dumps({"jobs": [{"overrides": job} for job in jobs.values()]}))
    directory, jobs = plan(["model=dcgan", "seed=0,1"], resume=True)
    assert (directory, len(jobs)) == (sweeps / "2026-01-02", 2)
    assert f"{directory}: 2 of 2 jobs remain" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"2026-01-03 has 1 of these 2 jobs: add the others"):
        plan(["model=dcgan", "seed=0,3"], resume=True)
    assert len(plan(["model=dcgan", "seed=0,3", "hydra.sweep.dir=outputs/sweeps/2026-01-03"], resume=True)[1]) == 3
    directory, _ = plan(["model=dcgan", "seed=5,6"], resume=True)
    assert not directory.exists()
    assert "no sweep of these jobs" in capsys.readouterr().err


@pytest.mark.parametrize("jobs", [[{"overrides": [["a=1"]]}], [{"overrides": 1}], {"folder": "0"}, None])
def test_a_file_that_lists_no_jobs(jobs: object, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"jobs": jobs}))
    assert jobs_in(tmp_path) == {}


def test_a_folder_is_computed_and_not_read(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"jobs": [{"folder": "../../elsewhere", "overrides": ["a=1"]}]}))
    assert jobs_in(tmp_path) == {folder_of(["a=1"]): ("a=1",)}


def test_a_typo_is_reported_before_the_first_job(command: Command, quick: tuple[str, ...], tmp_path: Path) -> None:
    ran = command("train", "-m", *quick, "model=dcgan,dcgn")
    assert ran.returncode == 2
    assert ran.stderr.startswith("error: model=dcgn: no such model; did you mean dcgan")
    assert not (tmp_path / "outputs").exists()


def score(value: float, *, n: int = 9, split: str = "train", resize: str = "none") -> Record:
    space = FeatureSpace(extractor="x", weights_hash="", resize=resize, dtype="float32")
    reference = ReferenceCard(name="digits", split=split, n=9, fingerprint="")
    protocol = Protocol(n=n, space=space, subject="training", step=1)
    return Record(metric="fd_x", value=value, n=n, protocol=protocol, reference=reference)


def run_of(best: Record, *scores: Record) -> RunSummary:
    return RunSummary(path=Path(), name="run", status="finished", best=best, scores=scores)


def test_scores_have_a_mean_over_the_seeds() -> None:
    bce, hinge = over_seeds(
        [
            (("loss=bce", "seed=1"), run_of(score(1.0), score(5.0, n=50, split="test"))),
            (("seed=2", "loss=bce"), run_of(score(3.0), score(5.0, n=50, split="test", resize="other"))),
            (("loss=bce", "seed=3"), run_of(score(8.0))),
            (("loss=hinge", "seed=1"), run_of(score(2.0))),
        ]
    )
    assert (bce["overrides"], bce["seeds"]) == (["loss=bce"], 3)
    # (1 + 3 + 8) / 3 and the root of (9 + 1 + 16) / 2; scores of two protocols have no mean.
    assert bce["scores"] == {"best fd_x_n9_train": {"mean": 4.0, "std": pytest.approx(13**0.5), "n": 3}}
    assert hinge["scores"] == {"best fd_x_n9_train": {"mean": 2.0, "std": None, "n": 1}}


def test_the_table_has_the_mean_over_seeds(
    run: Path, quick: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, jobs = plan([*quick, "loss=bce", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep"], resume=False)
    for name, value in zip(jobs, (1.5, 2.5), strict=True):
        shutil.copytree(run, sweep / name)
        record = {"metric": "fid", "value": value, "n": 10, "images": 10, "subject": "training", "step": 2}
        reference = {"reference_name": "digits", "reference_split": "train", "reference_n": 9}
        (sweep / name / "evaluation.json").write_text(json.dumps({"records": [{**record, **reference}]}))
    assert summarise(Sweep(lambda *_: pytest.fail("it only sums up"), [], sweep, jobs)) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [next(iter(jobs)), "finished", "2", "1.5", "seed=1"] in lines
    (mean,) = [line for line in lines if line and "±" in line and line[0] == "2"]
    assert mean[1:4] == ["2", "±", "0.71"]


def test_the_reason_of_a_failure_is_the_last_in_the_log(tmp_path: Path) -> None:
    run, log = RunDirectory(tmp_path), tmp_path / "train.log"
    assert reason_of(run) == ""
    log.write_text("2026-01-01 10:00:00,1 ERROR the first\n2026-01-01 10:00:01,1 INFO going on\n")
    assert reason_of(run) == "the first"
    with log.open("a") as file:
        file.write(
            "2026-01-01 10:00:02,1 ERROR Traceback (most recent call last):\n  File x\nValueError: \x1b[31mred\n"
        )
    assert reason_of(run) == r"ValueError: \x1b[31mred"
