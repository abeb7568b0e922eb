"""`cifargan train`: what a run leaves, sweeps, going on, signals."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from omegaconf import OmegaConf

from cifargan.run_log import RunLog
from cifargan.runs.checkpoint import CheckpointStore, load
from cifargan.runs.directory import RunDirectory
from cifargan.training.interruption import InterruptedRunError
from cifargan.training.step import GANStep

Command = Callable[..., CompletedProcess[str]]
Files = Callable[[], dict[str, bytes]]


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def sessions(run: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((run / "provenance.json").read_text())["sessions"]
    return found


def job_in(sweep: Path, override: str) -> Path:
    """The folder of the job that has an override."""
    (folder,) = (
        job["folder"]
        for job in json.loads((sweep / "summary.json").read_text())["jobs"]
        if override in job["overrides"]
    )
    return sweep / str(folder)


def test_what_a_run_leaves(command: Command, quick: tuple[str, ...], tmp_path: Path) -> None:
    ran = command("train", *quick, "model=dcgan", "seed=3")
    assert (ran.returncode, ran.stdout) == (0, "")
    (run,) = (tmp_path / "outputs" / "dcgan").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", run.name)
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    (events,) = (name for name in names if name.startswith("events.out.tfevents"))
    assert names - {events} == {
        *(".hydra/config.yaml", ".hydra/overrides.yaml", "metrics.csv", "metrics.jsonl", "provenance.json"),
        *(".lock", "status.json", "train.log", "samples/reals.png", "samples/step_000000002.png"),
        *("checkpoints/step_000000001.safetensors", "checkpoints/step_000000002.safetensors"),
    }
    assert OmegaConf.load(run / ".hydra" / "overrides.yaml") == [*quick, "model=dcgan", "seed=3"]
    saved = OmegaConf.load(run / ".hydra" / "config.yaml")
    assert (saved.name, saved.seed, saved.optimizer.discriminator.lr) == ("dcgan", 3, 2e-4)  # nothing to resolve
    assert OmegaConf.to_container(saved) == load(run / "checkpoints" / "step_000000002.safetensors")["config"]
    (session,) = sessions(run)
    assert (session["seed"], session["first_step"], session["precision"]) == (3, 0, "fp32")
    assert session["command"] == ["cifargan train", *quick, "model=dcgan", "seed=3"]
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["step"]) == ("finished", 2)

    # The terminal and the log tell the same, the latter with the time.
    log = [line.split(" ", 3)[3] for line in (run / "train.log").read_text().splitlines()]
    assert log == ran.stderr.splitlines()
    assert log[0] == f"run      {run}"
    assert log[-1] == f"finished: {run}"


def test_show_trains_nothing(command: Command, tmp_path: Path) -> None:
    ran = command("train", "model=biggan", "--cfg", "job", "--resolve", "name=x")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert OmegaConf.create(ran.stdout).model.generator.channels == 384
    assert list(tmp_path.iterdir()) == []


def test_the_same_seed_gives_the_same_weights(command: Command, quick: tuple[str, ...], tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert command("train", *quick, f"seed={seed}", f"hydra.run.dir={name}").returncode == 0
    a, b, c = (load(tmp_path / name / "checkpoints" / "step_000000002.safetensors")["ema"] for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not all(torch.equal(a[key], c[key]) for key in a)


def test_a_sweep_goes_on_when_a_job_fails(command: Command, quick: tuple[str, ...], tmp_path: Path) -> None:
    ran = command("train", *quick, "trainer.steps=1", "-m", "trainer.batch_size=0,4,2")
    assert ran.returncode == 2
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    failed, *finished = (job_in(sweep, f"trainer.batch_size={size}") for size in (0, 4, 2))
    message = "trainer.batch_size=0: must be at least 1"
    assert [path.name for path in failed.iterdir()] == ["train.log"]
    assert re.fullmatch(rf"\S+ \S+ ERROR {message}\n", (failed / "train.log").read_text())
    for folder, size in zip(finished, (4, 2), strict=True):
        assert load(folder / "checkpoints" / "step_000000001.safetensors")["config"]["trainer"]["batch_size"] == size
        assert message not in (folder / "train.log").read_text()
    assert ran.stderr.count(f"error: {message}\n") == 1
    for value, status in ((0, "failed"), (4, "finished"), (2, "finished")):
        row, *_ = [line for line in ran.stdout.splitlines() if f"trainer.batch_size={value}" in line.split()]
        assert status in row.split()
    assert ran.stdout.splitlines()[-1] == f"2 of 3 jobs finished, in {sweep}"
    # A job can be resumed by itself.
    assert command("train", f"resume={finished[0]}", "trainer.steps=2").returncode == 0


def test_a_bug_in_a_job_is_traced_in_its_folder(
    command: Command, quick: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = GANStep.iterate

    def sometimes(gan: GANStep) -> dict[str, torch.Tensor]:
        if gan.schedule.batch_size == 2:
            raise ZeroDivisionError("nobody foresaw this")
        return play(gan)

    monkeypatch.setattr(GANStep, "iterate", sometimes)
    ran = command("train", "--multirun", *quick, "trainer.batch_size=2,4", "hydra.sweep.dir=sweep")
    assert ran.returncode == 2
    assert "1 of 2 jobs finished" in ran.stdout
    failed, finished = (job_in(tmp_path / "sweep", f"trainer.batch_size={size}") for size in (2, 4))
    log = (failed / "train.log").read_text()
    assert "Traceback (most recent call last)" in log
    assert "ZeroDivisionError: nobody foresaw this" in log
    assert json.loads((failed / "status.json").read_text())["status"] == "failed"
    assert "Traceback" not in (finished / "train.log").read_text()


@pytest.mark.slow
def test_a_sweep_over_three_settings(command: Command, quick: tuple[str, ...], tmp_path: Path) -> None:
    ran = command("train", "-m", *quick, "model=dcgan,cdcgan", "loss=bce,hinge", "seed=1,2")
    assert ran.returncode == 0, ran.stderr
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    found = set()
    for job in sorted(path.parent for path in sweep.glob("*/status.json")):
        config = load(job / "checkpoints" / "step_000000002.safetensors")["config"]
        assert json.loads((job / "status.json").read_text())["status"] == "finished"
        found.add(
            (config["name"], config["model"]["discriminator"]["head"]["name"], config["loss"]["name"], config["seed"])
        )
    heads = (("dcgan", "linear"), ("cdcgan", "projection"))
    assert found == {(*head, loss, seed) for head in heads for loss in ("bce", "hinge") for seed in (1, 2)}
    assert len([path for path in sweep.iterdir() if path.is_dir()]) == 8
    assert ran.stdout.splitlines()[-1] == f"8 of 8 jobs finished, in {sweep}"


def test_stopping_one_job_stops_the_sweep(
    command: Command, quick: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(gan: GANStep) -> None:
        raise InterruptedRunError(signal.SIGINT, "stopped at step 0")

    monkeypatch.setattr(GANStep, "iterate", stop)
    ran = command("train", "-m", *quick, "seed=1,2", "hydra.sweep.dir=sweep")
    assert ran.returncode == 130
    assert ran.stderr.splitlines()[-1].startswith("error: stopped at step 0; resume with: cifargan train resume=")
    assert len(list((tmp_path / "sweep").glob("*/status.json"))) == 1


def test_resume_replays_and_goes_on_exactly(command: Command, quick: tuple[str, ...], tmp_path: Path) -> None:
    longer = (*quick, "model=dcgan", "seed=4", "trainer.steps=4")
    assert command("train", *longer, "hydra.run.dir=whole").returncode == 0
    assert command("train", *longer, "trainer.steps=2", "hydra.run.dir=halves").returncode == 0
    ran = command("train", "resume=halves", "trainer.steps=4")
    assert ran.returncode == 0, ran.stderr

    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert steps(whole) == steps(halves) == [1, 2, 3, 4]
    one, other = (load(run / "checkpoints" / "step_000000004.safetensors") for run in (whole, halves))
    for part in ("generator", "discriminator", "ema"):
        assert all(torch.equal(one[part][key], other[part][key]) for key in one[part])
    assert OmegaConf.load(halves / ".hydra_1" / "overrides.yaml") == [
        *(override for override in quick if override != "trainer.steps=2"),
        *("model=dcgan", "seed=4", "trainer.steps=4"),
    ]
    assert OmegaConf.load(halves / ".hydra" / "config.yaml").trainer.steps == 2
    assert OmegaConf.load(halves / ".hydra_1" / "config.yaml").trainer.steps == 4
    assert [session["first_step"] for session in sessions(halves)] == [0, 2]

    # What was given at the last resume is replayed, too.
    ran = command("train", "resume=halves")
    assert "is finished (step 4)" in ran.stderr


def test_a_finished_run_says_so_and_stays_as_it_is(command: Command, run: Path, files: Files) -> None:
    before = files()
    for name in ("latest", str(run), "cdcgan/run", "outputs/cdcgan/run"):
        ran = command("train", f"resume={name}")
        assert (ran.returncode, ran.stdout) == (0, "")
        assert ran.stderr.splitlines() == [f"{run} is finished (step 2): raise trainer.steps to continue"]
    assert files() == before


def test_resume_latest_takes_the_newest(command: Command, run: Path, quick: tuple[str, ...], tmp_path: Path) -> None:
    for number in range(2):
        assert command("train", *quick, f"hydra.run.dir=outputs/a/{number}").returncode == 0
    assert command("train", "resume=latest", "trainer.steps=3").returncode == 0
    assert [steps(tmp_path / "outputs" / name)[-1] for name in ("a/1", "a/0", "cdcgan/run")] == [3, 2, 2]


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(command: Command, run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    RunDirectory(run).set_status("running", step=0)
    assert command("train", "resume=latest").returncode == 0
    assert steps(run) == [1, 2]
    assert load(run / "checkpoints" / "step_000000002.safetensors")["step"] == 2


def test_a_job_script_says_resume_latest_again_and_again(
    command: Command, quick: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = ("train", "resume=latest", *quick, "model=dcgan", "seed=3")
    play, stop_at = GANStep.iterate, 1

    def until(gan: GANStep) -> dict[str, torch.Tensor]:
        if gan.step == stop_at:
            raise SystemExit(9)
        return play(gan)

    with monkeypatch.context() as patched:
        patched.setattr(GANStep, "iterate", until)
        assert command(*script).returncode == 9
    (run,) = (tmp_path / "outputs" / "dcgan").iterdir()
    # It ended without a word: that is what a status of a process that is no more looks like.
    RunDirectory(run).set_status("running", step=0)
    assert RunDirectory(run).status()["status"] == "interrupted"
    (run / ".hydra_1").mkdir()  # and another start was killed before it had written anything
    ran = command(*script)
    assert ran.returncode == 0
    assert f"resuming from step 1 of {run}, whose process died" in ran.stderr
    assert steps(run) == [1, 2]
    ran = command(*script)
    assert (ran.returncode, ran.stderr.splitlines()) == (
        0,
        [f"{run} is finished (step 2): raise trainer.steps to continue"],
    )
    assert list((tmp_path / "outputs" / "dcgan").iterdir()) == [run]
    # Another recipe in the same folder is not taken for this one.
    ran = command("train", "resume=latest", *quick, "model=dcgan", "seed=4")
    assert ran.returncode == 2
    assert (
        "error: resume=latest: no run under outputs was started with data=digits evaluator=none model=dcgan seed=4"
        in ran.stderr
    )


def test_resume_latest_knows_a_folder_of_its_own(command: Command, quick: tuple[str, ...], tmp_path: Path) -> None:
    script = ("train", "resume=latest", *quick, "hydra.run.dir=here")
    assert command(*script, "trainer.steps=1").returncode == 0
    assert command(*script).returncode == 0
    assert steps(tmp_path / "here") == [1, 2]
    assert "is finished (step 2)" in command(*script).stderr
    assert not (tmp_path / "outputs").exists()


def test_a_run_whose_process_died_after_the_last_checkpoint_is_finished(command: Command, run: Path) -> None:
    RunDirectory(run).set_status("running", step=0)
    ran = command("train", "resume=latest")
    assert ran.returncode == 0
    assert f"{run} is trained to its last step (2); its final scores: cifargan evaluate {run}" in ran.stderr
    assert RunDirectory(run).status()["status"] == "finished"


def test_a_run_that_ended_early_stays_ended_until_something_is_changed(command: Command, run: Path) -> None:
    RunDirectory(run).set_status("finished", step=2, stopped_early=True)
    OmegaConf.save(
        [*OmegaConf.load(run / ".hydra" / "overrides.yaml"), "trainer.steps=4"], run / ".hydra/overrides.yaml"
    )
    OmegaConf.save(
        OmegaConf.merge(OmegaConf.load(run / ".hydra" / "config.yaml"), {"trainer": {"steps": 4}}),
        run / ".hydra" / "config.yaml",
    )
    path = run / "checkpoints" / "step_000000002.safetensors"
    state = load(path)
    state["config"]["trainer"]["steps"] = 4
    CheckpointStore(path.parent).save(state, 2)
    ran = command("train", "resume=latest")
    assert ran.returncode == 0
    assert f"{run} has ended early (step 2): change evaluator.stop_after or evaluator.target or" in ran.stderr
    assert command("train", "resume=latest", "trainer.steps=3").returncode == 0
    assert steps(run) == [1, 2, 3]


def test_a_second_ctrl_c_is_an_interruption_and_no_failure(
    command: Command, quick: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(gan: GANStep) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(GANStep, "iterate", stop)
    assert command("train", *quick, "hydra.run.dir=run").returncode == 130
    assert RunDirectory(tmp_path / "run").status()["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_after_the_step_in_hand(
    number: signal.Signals, code: int, command: Command, quick: tuple[str, ...], tmp_path: Path
) -> None:
    endless = [*quick, "trainer.steps=1000000", "trainer.checkpoint_every=1000000", "trainer.sample_every=1000000"]
    with subprocess.Popen(
        [sys.executable, "-m", "cifargan", "train", *endless, "hydra.run.dir=run"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step "):
                break
        process.send_signal(number)
        rest = process.stderr.read().splitlines()
    assert process.returncode == code
    run = tmp_path / "run"
    (checkpoint,) = (run / "checkpoints").iterdir()
    step = load(checkpoint)["step"]
    assert rest[-1] == (f"error: stopped at step {step}, checkpoint written; resume with: cifargan train resume={run}")
    assert not any("Traceback" in line for line in rest)
    assert json.loads((run / "status.json").read_text())["status"] == "interrupted"
    assert steps(run)[-1] == step
    assert command("train", "resume=run", f"trainer.steps={step + 1}").returncode == 0
    assert steps(run) == list(range(1, step + 2))


# Takes its stdin for the terminal that it lives and dies with, and becomes another program.
IN_A_TERMINAL = """
import fcntl, os, signal, sys, termios
signal.signal(signal.SIGHUP, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="terminals elsewhere are other ones")
def test_a_lost_terminal_costs_nothing(quick: tuple[str, ...], tmp_path: Path) -> None:
    endless = [*quick, "trainer.steps=1000000", "trainer.checkpoint_every=1000000", "trainer.sample_every=1000000"]
    train = [sys.executable, "-m", "cifargan", "train", *endless, "hydra.run.dir=run"]
    run = RunDirectory(tmp_path / "run")
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, *train],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        cwd=tmp_path,
    )
    os.close(theirs)
    try:
        ended = time.monotonic() + 120
        while not run.metrics.exists() or not run.metrics.read_bytes().count(b"\n"):
            assert time.monotonic() < ended, "no step"
            time.sleep(0.05)
        os.close(ours)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
    status = run.status()
    (checkpoint,) = (run.path / "checkpoints").iterdir()
    assert (status["status"], status["step"]) == ("interrupted", load(checkpoint)["step"])
    assert steps(run.path)[-1] == status["step"]
    assert "checkpoint written; resume with" in (run.path / "train.log").read_text()


def test_the_log_begins_when_there_is_a_run(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    logger = logging.getLogger("test_train")
    with RunLog(path) as run_log:
        logger.warning("early")
        run_log.error(ValueError("lost"))
        assert not path.exists()
    assert not path.exists()
    with RunLog(path) as run_log:
        logger.warning("early")
        run_log.begin()
        assert path.read_text().endswith(" WARNING early\n")
        logger.warning("later")
        assert path.read_text().endswith(" WARNING later\n")
    logger.warning("too late")
    assert len(path.read_text().splitlines()) == 2
