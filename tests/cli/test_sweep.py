"""`cifargan train -m`: which jobs there are, where they lie, going on with them, and what came of them."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from cifargan.cli.sweep import Job, Sweep, combinations, identity, jobs_in, split_sweep
from cifargan.cli.sweep_summary import over_seeds, reason_of, summarise
from cifargan.errors import UserError
from cifargan.evaluation.records import FeatureSpace, Protocol, Record, ReferenceCard
from cifargan.runs.checkpoint import load
from cifargan.runs.directory import RunDirectory
from cifargan.runs.read import RunSummary
from cifargan.training.step import GANStep

Command = Callable[..., CompletedProcess[str]]
Play = Callable[[GANStep], dict[str, torch.Tensor]]


def parsed(*overrides: str) -> list[list[str]]:
    return combinations(OverridesParser.create().parse_overrides(list(overrides)))


def statuses(sweep: Path) -> list[str]:
    return [job["status"] for job in json.loads((sweep / "summary.json").read_text())["jobs"]]


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_jobs_are_all_combinations() -> None:
    assert parsed("a=1,2", "~b", "c='x,y'", "+d=choice([1,2],x)", "seed=range(0,2)", "a.b={k:1}") == [
        [f"a={a}", "~b", "c='x,y'", f"+d={d}", f"seed={seed}", "a.b={k:1}"]
        for a in (1, 2)
        for d in ("[1,2]", "x")
        for seed in (0, 1)
    ]
    with pytest.raises(UserError, match=r"^lr=interval\(0,1\): an interval has no end of values: cifargan tune"):
        parsed("lr=interval(0,1)")


def test_a_job_is_what_it_trains() -> None:
    assert identity(["seed=1", "output_root=x", "a=2", "resume=r", "hydra.sweep.dir=s"]) == ("a=2", "seed=1")
    assert identity(["a=2", "seed=1"]) != identity(["a=2", "seed=2"])


@pytest.mark.parametrize(
    ("overrides", "sweep", "message"),
    [
        (["sweep=resum"], True, "sweep=resum: did you mean resume?"),
        (["sweep=xyz"], True, "sweep=xyz: there is only sweep=resume"),
        (["sweep=resume"], False, "sweep=resume goes on with a sweep, which takes -m"),
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
    jobs = [Job(tmp_path / str(number), (f"seed={number}",)) for number in range(2)]
    runs = [RunDirectory(job.directory) for job in jobs]
    for run in runs:
        run.path.mkdir()
        run.write_json("provenance.json", {"sessions": []})
    runs[0].set_status("finished", step=1)
    runs[1].set_status("interrupted", step=1)
    sweep = Sweep(lambda *_: pytest.fail("it only sums up"), ["cifargan train", "-m"], False, tmp_path, jobs)
    assert summarise(sweep) == 2
    assert capsys.readouterr().out.splitlines()[-1] == f"1 of 2 jobs finished, in {tmp_path}"
    assert statuses(tmp_path) == ["finished", "interrupted"]
    runs[1].set_status("finished", step=1)
    assert summarise(sweep) == 0


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_was_stopped(
    command: Command, quick: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play: Play = GANStep.iterate

    def interrupted(gan: GANStep) -> dict[str, torch.Tensor]:
        if gan.step == 1 and gan.schedule.batch_size == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return play(gan)

    monkeypatch.setattr(GANStep, "iterate", interrupted)
    jobs = (*quick, "trainer.steps=4", "trainer.batch_size=2,3,4")
    ran = command("train", "-m", *jobs)
    assert ran.returncode == 130
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert statuses(sweep) == ["finished", "interrupted", "missing"]
    assert sorted(path.name for path in sweep.iterdir()) == [".stopped", "0", "1", "summary.json"]
    again = re.search(r"^go on with: cifargan (train .* sweep=resume)$", ran.stdout, re.MULTILINE)
    assert again
    assert f"hydra.sweep.dir={sweep}" in again[1]

    monkeypatch.setattr(GANStep, "iterate", play)
    before = content(sweep / "0")
    ran = command("train", "-m", *jobs, "sweep=resume")
    assert ran.returncode == 0, ran.stderr
    assert f"{sweep}: 2 of 3 jobs to do" in ran.stderr
    assert list((tmp_path / "outputs" / "sweeps").iterdir()) == [sweep]
    assert statuses(sweep) == ["finished"] * 3
    assert content(sweep / "0") == before
    started = [
        session["first_step"] for session in json.loads((sweep / "1" / "provenance.json").read_text())["sessions"]
    ]
    assert started[0] == 0
    assert 0 < started[1] < 4

    # Bit for bit as if it had not been stopped.
    assert command("train", *jobs[:-1], "trainer.batch_size=3", "hydra.run.dir=whole").returncode == 0
    one, other = (load(run / "checkpoints" / "step_000000004.safetensors") for run in (sweep / "1", tmp_path / "whole"))
    for part in ("generator", "discriminator", "ema"):
        assert all(torch.equal(one[part][key], other[part][key]) for key in one[part])

    # Nothing is left to do.
    before = content(sweep)
    ran = command("train", "-m", *jobs, "sweep=resume")
    assert (ran.returncode, ran.stdout.splitlines()[-1]) == (0, f"3 of 3 jobs finished, in {sweep}")
    assert content(sweep) == before


@pytest.mark.slow
def test_failed_jobs_are_redone_and_others_added(
    command: Command, quick: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play: Play = GANStep.iterate

    def broken(gan: GANStep) -> dict[str, torch.Tensor]:
        if gan.schedule.batch_size == 2:
            raise ZeroDivisionError("nobody foresaw this")
        return play(gan)

    monkeypatch.setattr(GANStep, "iterate", broken)
    short = (*quick, "trainer.steps=1", r"hydra.sweep.dir='it\'s one'")
    ran = command("train", "-m", *short, "trainer.batch_size=2,4")
    sweep = tmp_path / "it's one"
    assert (ran.returncode, statuses(sweep)) == (2, ["failed", "finished"])
    assert "ZeroDivisionError: nobody foresaw this" in ran.stdout

    ran = command("train", "-m", *short, "trainer.batch_size=2,4")
    assert ran.returncode == 2
    assert (
        ran.stderr == f"error: {sweep} already holds a sweep: go on with it by sweep=resume, or choose another folder\n"
    )

    monkeypatch.setattr(GANStep, "iterate", play)
    ran = command("train", "-m", *short, "trainer.batch_size=5,4,2", "sweep=resume")
    assert ran.returncode == 0, ran.stderr
    assert statuses(sweep) == ["finished"] * 3
    sizes = [
        load(sweep / name / "checkpoints" / "step_000000001.safetensors")["config"]["trainer"]["batch_size"]
        for name in "012"
    ]
    assert sizes == [2, 4, 5]  # each job has kept its folder


def test_which_sweep_is_meant(command: Command, quick: tuple[str, ...], tmp_path: Path) -> None:
    sweeps = tmp_path / "outputs" / "sweeps"

    def keep(name: str, *values: str) -> None:
        (sweeps / name).mkdir(parents=True)
        fixed = [override for override in quick if not override.startswith("trainer.batch_size=")]
        jobs = [{"folder": str(i), "overrides": [*fixed, f"trainer.batch_size={v}"]} for i, v in enumerate(values)]
        (sweeps / name / "summary.json").write_text(json.dumps({"jobs": jobs}))

    keep("2026-01-01", "0", "-1")
    keep("2026-01-02", "-1", "0")
    keep("2026-01-03", "0", "-2")
    ran = command("train", "-m", *quick, "trainer.batch_size=0,-1", "sweep=resume")
    assert ran.returncode == 2
    assert f"{sweeps / '2026-01-02'}: 2 of 2 jobs to do" in ran.stderr
    assert (
        (sweeps / "2026-01-02" / "1" / "train.log").read_text().endswith("trainer.batch_size=0: must be at least 1\n")
    )

    ran = command("train", "-m", *quick, "trainer.batch_size=0,-3", "sweep=resume")
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"error: sweep=resume: {sweeps / '2026-01-03'} has 1 of these 2 jobs: add the others")

    ran = command("train", "-m", *quick, "trainer.batch_size=-5,-6", "sweep=resume")
    assert f"no sweep of these jobs under {sweeps} yet: starting one" in ran.stderr
    assert len(list(sweeps.iterdir())) == 4


@pytest.mark.parametrize(
    "jobs",
    [
        [{"folder": "../../elsewhere", "overrides": ["a=1"]}],
        [{"folder": "0", "overrides": [["a=1"]]}],
        [{"folder": 0, "overrides": ["a=1"]}],
        {"folder": "0"},
        None,
    ],
)
def test_a_folder_that_one_was_sent_leads_nowhere(jobs: object, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"jobs": jobs}))
    assert jobs_in(tmp_path) == {}


def test_other_runs_in_the_folder_are_left_alone(command: Command, run: Path, quick: tuple[str, ...]) -> None:
    run.rename(run.with_name("0"))
    before = content(run.with_name("0"))
    folder = f"hydra.sweep.dir={run.parent}"
    ran = command("train", "-m", *quick, folder, "hydra.sweep.subdir=0")
    assert ran.stderr == "error: hydra.sweep.subdir: a sweep numbers the folders of its jobs: leave it out\n"
    assert command("train", "-m", *quick, "trainer.steps=1", folder).returncode == 0
    assert content(run.with_name("0")) == before
    assert json.loads((run.parent / "summary.json").read_text())["jobs"][0]["folder"] == "1"


def test_one_value_twice_is_told(command: Command, quick: tuple[str, ...], tmp_path: Path) -> None:
    ran = command("train", "-m", *quick, "seed=1,1")
    assert (ran.returncode, ran.stderr) == (2, "error: a combination is there twice: give each value once\n")
    assert not (tmp_path / "outputs").exists()


def test_a_typo_is_told_before_the_first_job(command: Command, quick: tuple[str, ...], tmp_path: Path) -> None:
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


def test_scores_are_summed_up_over_the_seeds() -> None:
    def job(*overrides: str) -> Job:
        return Job(Path(), overrides)

    found = over_seeds(
        [
            (job("loss=bce", "seed=1"), run_of(score(1.0), score(5.0, n=50, split="test"))),
            (job("seed=2", "loss=bce"), run_of(score(3.0), score(5.0, n=50, split="test", resize="other"))),
            (job("loss=bce", "seed=3"), run_of(score(8.0))),
            (job("loss=hinge", "seed=1"), run_of(score(2.0))),
        ]
    )
    bce, hinge = found
    assert (bce["overrides"], bce["seeds"]) == (["loss=bce"], 3)
    # (1 + 3 + 8) / 3 and the root of (9 + 1 + 16) / 2; scores of two protocols have no mean.
    assert bce["scores"] == {"best fd_x_n9_train": {"mean": 4.0, "std": pytest.approx(13**0.5), "n": 3}}
    assert hinge["scores"] == {"best fd_x_n9_train": {"mean": 2.0, "std": None, "n": 1}}


def test_the_table_has_the_mean_over_seeds(command: Command, run: Path, quick: tuple[str, ...], tmp_path: Path) -> None:
    jobs = [[*quick, "loss=bce", f"seed={seed}"] for seed in (1, 2)]
    sweep = tmp_path / "sweep"
    for number, value in enumerate((1.5, 2.5)):
        shutil.copytree(run, sweep / str(number))
        record = {"metric": "fid", "value": value, "n": 10, "images": 10, "subject": "training", "step": 2}
        reference = {"reference_name": "digits", "reference_split": "train", "reference_n": 9}
        (sweep / str(number) / "evaluation.json").write_text(json.dumps({"records": [{**record, **reference}]}))
    entries = [{"folder": str(number), "overrides": job} for number, job in enumerate(jobs)]
    (sweep / "summary.json").write_text(json.dumps({"jobs": entries}))
    ran = command("train", "-m", *quick, "loss=bce", "seed=1,2", "sweep=resume", "hydra.sweep.dir=sweep")
    assert ran.returncode == 0, ran.stderr
    lines = [line.split() for line in ran.stdout.splitlines()]
    assert ["0", "finished", "2", "1.5", "seed=1"] in lines
    (mean,) = [line for line in lines if line and "±" in line and line[0] == "2"]
    assert mean[1:4] == ["2", "±", "0.71"]


def test_the_reason_of_a_failure_is_the_last_in_the_log(tmp_path: Path) -> None:
    assert reason_of(tmp_path) == ""
    log = tmp_path / "train.log"
    log.write_text("2026-01-01 10:00:00,1 ERROR the first\n2026-01-01 10:00:01,1 INFO going on\n")
    assert reason_of(tmp_path) == "the first"
    with log.open("a") as file:
        file.write(
            "2026-01-01 10:00:02,1 ERROR Traceback (most recent call last):\n  File x\nValueError: \x1b[31mred\n"
        )
    assert reason_of(tmp_path) == r"ValueError: \x1b[31mred"
