"""What a user gets wrong is answered by one line that says what, where and what to do; and nothing is lost."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import IO, Any

import pytest
import torch
from hydra.errors import HydraException

from cifargan.errors import UserError
from cifargan.explain import exit_code, explain, groups, options
from cifargan.files import write_atomically
from cifargan.runs.checkpoint import load
from cifargan.runs.directory import RunDirectory
from cifargan.training.interruption import InterruptedRunError
from cifargan.training.log import RunLog
from cifargan.training.step import GANStep

Command = Callable[..., CompletedProcess[str]]
Files = Callable[[], dict[str, bytes]]


def the_error(ran: CompletedProcess[str], *, alone: bool = True) -> str:
    """The one line of an error that the user can mend, checked for its form."""
    lines = ran.stderr.splitlines()
    assert ran.returncode == 2, ran.stderr
    assert "Traceback" not in ran.stderr
    assert sum("error:" in line for line in lines) == 1, ran.stderr
    assert lines[-1].startswith("error: ")
    if alone:
        assert len(lines) == 1, ran.stderr
        assert ran.stdout == ""
    return lines[-1].removeprefix("error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("trian", "cifargan trian: no such command; did you mean train?"),
        ("xyz", "cifargan xyz: no such command; see cifargan --help"),
        ("train model=bigan", "model=bigan: no such model; did you mean biggan"),
        ("train experiment=nope", "experiment=nope: no such experiment; choose from acbiggan, biggan,"),
        ("train model=", "model=: no such model; choose from acbiggan,"),
        ("train model=null", "model=null: leave it out, or choose from acbiggan,"),
        ("train ~model", "model=null: expected a group of settings"),
        ("train mdoel=dcgan", "mdoel: no such setting; did you mean model?"),
        ("train lr=abc", "lr: no such setting; did you mean optimizer."),
        ("train optimizer.generator.lr=abc", "optimizer.generator.lr=abc: expected float"),
        ("train trainer.steps=abc", "trainer.steps=abc: expected int"),
        ("train trainer.steps=0", "trainer.steps=0: must be at least 1"),
        ("train trainer.batch_size=5 trainer.accumulate=2", "trainer.batch_size=5 does not divide into"),
        ("train trainer={stpes:3}", "trainer.stpes: no such setting; did you mean trainer.steps"),
        ("train trainer.stpes=3", "trainer.stpes: no such setting; did you mean trainer.steps"),
        ("train +trainer.foo=1", "trainer.foo: no such setting; there are steps, batch_size,"),
        ("train +foo=1", "foo: no such setting"),
        ("train +seed=1", "Could not append to config. An item is already at 'seed'."),
        ("train seed=-1", "seed=-1: must lie between 0 and"),
        ("train seed=1,2", "seed=1,2: several values are a sweep, which takes -m; a list is written seed=[1,2]"),
        ("train -m model=dcgan,bigan", "model=bigan: no such model; did you mean biggan"),
        ("train -m resume=latest seed=1,2", "resume= resumes one run; it does not go with -m"),
        ("train trainer.steps", "cannot read the override trainer.steps: write it as key=value"),
        ("train trainer.steps=[1", "cannot read the override trainer.steps=[1: write it as key=value"),
        ("train --steps 5", "--steps: no such option; settings are written key=value, see cifargan train --help"),
        ("train --multirn", "--multirn: no such option; did you mean --multirun?"),
        ("train --cfg jb", "--cfg jb: choose from job, hydra, all"),
        ("train -m seed=1,2 --cfg job", "-m sweeps, --cfg only shows"),
        ("train resume=nowhere", "there is no run at nowhere; there is none under outputs either"),
        ("train resume=latest trainer.stpes=3", "trainer.stpes: no such setting"),
        ("train device=gpu", "device=gpu: no such device; choose from auto, cuda, cuda:N, mps, cpu"),
        ("train data=folder", "data.root has no value: set data.root=..."),
        ("train data=folder data.root=nowhere", "data.root: there is no folder or zip at"),
        ("train data=digits data.classes=[10]", "data.classes: there is no class '10'"),
        ("train data=digits data.image_size=33", "image_size=33: this model needs a power of two"),
        ("train data=digits model=biggan model.generator.latent_dim=81", "BigGAN: hierarchical=true splits"),
        ("train data=digits precision=fp16 device=cpu", "precision=fp16 needs a CUDA device"),
        ("train evaluator=inception evaluator.evry=1", "evaluator.evry: no such setting; did you mean"),
        ("train model.generator={_target_:os.system}", "model.generator._target_: no such setting"),
        ("sample", "there is no run under outputs: train one first (cifargan train), or name its folder"),
        ("sample --trunction 1", "unrecognized arguments: --trunction; did you mean --truncation?"),
        ("sample --xyz", "unrecognized arguments: --xyz; see cifargan sample --help"),
        ("sample --truncation -1", "argument --truncation: -1 is no number above 0"),
        ("sample --truncation nan", "argument --truncation: nan is no number above 0"),
        ("sample --truncation much", "argument --truncation: much is no number above 0"),
        ("sample --per-class 0", "argument --per-class: 0 is no whole number from 1 on"),
        ("sample --per-class 1.5", "argument --per-class: 1.5 is no whole number from 1 on"),
        ("sample --seed -1", "argument --seed: -1 is no whole number from 0 on"),
        ("sample --batch-norm evl", "argument --batch-norm: invalid choice: 'evl'"),
        ("sample --format jpg", "--format jpg: choose from grid, png, npz"),
    ],
)
def test_one_line_and_nothing_left_behind(arguments: str, message: str, command: Command, tmp_path: Path) -> None:
    assert the_error(command(*arguments.split())).startswith(message)
    # Hydra makes the folder of the run before anybody looks at the settings.
    assert {path.name for path in (tmp_path / "outputs").glob("*")} <= {"sweeps"}
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"multirun.yaml"}  # Hydra's own


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_there(command: Command, tmp_path: Path) -> None:
    message = the_error(command("train", "data=digits", "device=cuda"))
    assert message == "device=cuda: CUDA devices that torch sees here: 0; choose device=auto or device=cpu"


def test_a_file_where_the_folder_of_runs_should_be(command: Command, tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("mine")
    assert "outputs" in (message := the_error(command("train", "data=digits")))
    assert "choose another output_root" in message
    assert (tmp_path / "outputs").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--classes 3,cat", "there is no class 'cat'; choose from 0, 1, 2,"),
        ("--classes 3,3", "Classes ['3', '3'] cannot be sampled"),
        ("--checkpoint 7", "no checkpoint '7' in outputs/cdcgan/run/checkpoints: there are 1, 2"),
        ("--checkpoint best", "no checkpoint 'best' in outputs/cdcgan/run/checkpoints: there are 1, 2"),
        ("--interpolate 3", "--interpolate 3: name two classes"),
        ("--interpolate 3,cat", "there is no class 'cat'; choose from 0, 1, 2,"),
        ("--device gpu", "device=gpu: no such device"),
        ("nowhere", "there is no run at nowhere; the newest is outputs/cdcgan/run"),
        ("outputs/cdcgan/rum", "there is no run at outputs/cdcgan/rum; did you mean outputs/cdcgan/run?"),
    ],
)
def test_sample_refuses_before_it_writes(
    arguments: str, message: str, command: Command, run: Path, files: Files
) -> None:
    before = files()
    assert the_error(command("sample", *arguments.split())).startswith(message)
    assert files() == before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 this is no checkpoint", None])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    content: bytes | None, command: Command, run: Path, files: Files, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = run / "checkpoints" / "step_000000002.safetensors"
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2] + b"!" + whole[len(whole) // 2 + 1 :] if content is None else content)
    before = files()
    ran = command("sample")
    assert ran.returncode == 0
    assert f"{newest.relative_to(tmp_path)} is damaged" in caplog.text
    assert "there is step_000000001.safetensors beside it" in caplog.text
    assert all(files()[name] == content for name, content in before.items())
    assert newest.name in the_error(command("sample", "--checkpoint", "2"))
    ran = command("train", "resume=latest")
    assert ran.returncode == 0
    assert f"{newest} is damaged" in ran.stderr
    assert f"resuming from step 1 of {run}" in ran.stderr
    assert load(newest)["step"] == 2
    assert newest.with_suffix(".damaged").exists()


def test_where_every_checkpoint_is_damaged_nothing_is_begun_anew(command: Command, run: Path, files: Files) -> None:
    for path in (run / "checkpoints").iterdir():
        path.write_bytes(b"")
    before = files()
    message = the_error(command("train", "resume=latest", "trainer.steps=3"), alone=False)
    assert message.startswith(
        f"every checkpoint of {run} is damaged (step_000000001.safetensors, step_000000002.safetensors): put back"
    )
    assert files() == before


def test_where_the_checkpoints_are_gone_nothing_is_begun_anew(command: Command, run: Path, files: Files) -> None:
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    before = files()
    message = the_error(command("train", "resume=latest"))
    assert message.startswith(f"{run} was trained to step 2, but its checkpoints are gone")
    assert files() == before


def test_a_run_that_another_process_trains_is_left_alone(command: Command, run: Path, files: Files) -> None:
    with RunDirectory(run).lock():
        before = files()
        for arguments in (f"resume={run}", "resume=latest"):
            message = the_error(command("train", arguments, "trainer.steps=3"))
            assert message.startswith(f"{run} is being trained by another process")
        assert files() == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.generator.base_channels=8", "the checkpoint is of another generator:"),
        ("data.classes=[1,2]", "the checkpoint has the classes"),
        ("data.splits=[train]", "the training images are not those that the checkpoint was trained on"),
        ("loss=wasserstein", "the checkpoint is of another"),
        ("trainer.stpes=4", "trainer.stpes: no such setting"),
    ],
)
def test_a_resumption_that_does_not_fit_leaves_the_run_as_it_is(
    override: str, message: str, command: Command, run: Path, files: Files
) -> None:
    before = files()
    ran = command("train", f"resume={run}", "trainer.steps=3", override)
    assert the_error(ran, alone=False).startswith(message)
    assert files() == before


def test_a_second_run_does_not_touch_the_first(command: Command, run: Path, files: Files, quick: list[str]) -> None:
    before = files()
    message = the_error(command("train", *quick, f"hydra.run.dir={run}"))
    assert message.startswith(f"{run} already holds a run: resume it by resume={run}")
    assert files() == before


def test_one_class_needs_an_unconditional_model(
    command: Command, pictures: Callable[..., Path], quick: tuple[str, ...], files: Files
) -> None:
    root = pictures("cat")
    before = files()
    folder = [part for part in quick if not part.startswith("data")] + ["data=folder", f"data.root={root}"]
    folder += ["data.image_size=16", "hydra.run.dir=run"]
    message = the_error(command("train", *folder, "model=cdcgan"), alone=False)
    assert message.startswith("the data have one class (cat) and this model is conditional: add a folder for each")
    assert files() == before
    assert command("train", *folder, "model=dcgan").returncode == 0


def test_a_file_that_is_no_image(command: Command, pictures: Callable[..., Path], quick: tuple[str, ...]) -> None:
    root = pictures("cat", "dog")
    (root / "dog" / "2.png").write_bytes(b"no image")
    folder = [part for part in quick if not part.startswith("data")] + ["data=folder", f"data.root={root}"]
    folder += ["data.image_size=16", "hydra.run.dir=run"]
    message = the_error(command("train", *folder), alone=False)
    assert str(root / "dog" / "2.png") in message
    assert "data.on_broken=skip" in message
    assert not (root.parent / "run").exists()
    ran = command("train", *folder, "data.on_broken=skip")
    assert ran.returncode == 0
    assert "7 images" in ran.stderr
    # What was said before the folder was known to hold a run is in its log all the same.
    assert "1 broken files left out: dog/2.png" in (root.parent / "run" / "train.log").read_text()


def test_out_of_memory(
    command: Command, quick: tuple[str, ...], tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nOf the allocated memory ...")

    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.Module, "to", no_memory)
        message = the_error(command("train", *quick))
        assert message.startswith("out of memory: lower trainer.batch_size, or raise trainer.accumulate")
        assert files() == {}
    monkeypatch.setattr(GANStep, "iterate", no_memory)
    message = the_error(command("train", *quick, "hydra.run.dir=run"), alone=False)
    assert message.startswith("out of memory: ")
    assert '"failed"' in (tmp_path / "run" / "status.json").read_text()
    assert "ERROR out of memory: " in (tmp_path / "run" / "train.log").read_text()


def test_a_full_disk_costs_no_checkpoint(
    command: Command, quick: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_from_the_second_on(path: Path, content: bytes) -> None:
        def half(file: IO[bytes]) -> None:
            file.write(content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        write_atomically(path, content if path.stem == "step_000000001" else half)

    with monkeypatch.context() as patched:
        patched.setattr("cifargan.runs.checkpoint.write_atomically", full_from_the_second_on)
        message = the_error(command("train", *quick, "hydra.run.dir=run"), alone=False)
    folder = tmp_path / "run" / "checkpoints"
    assert message.startswith(
        f"the last checkpoint, of step 2, is lost: could not write {folder / 'step_000000002.safetensors'}: "
    )
    assert message.endswith(f"; the last good checkpoint is {folder / 'step_000000001.safetensors'}")
    assert "what was there before is untouched" in message
    assert "No space left on device" in message
    kept = list((tmp_path / "run" / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step_000000001.safetensors"]
    assert load(kept[0])["step"] == 1
    assert command("train", "resume=run").returncode == 0
    assert load(tmp_path / "run" / "checkpoints" / "step_000000002.safetensors")["step"] == 2


def test_a_disk_that_is_full_elsewhere(
    command: Command, quick: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RunLog, "scalars", full)
    message = the_error(command("train", *quick), alone=False)
    assert message.startswith("the disk is full: free some space, then resume with resume=RUN")


def test_a_bug_keeps_its_traceback(
    command: Command, quick: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(gan: GANStep) -> None:
        raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr(GANStep, "iterate", bug)
    ran = command("train", *quick, "hydra.run.dir=run")
    assert ran.returncode == 1
    assert "Traceback (most recent call last)" in ran.stderr
    assert "in bug" in ran.stderr
    last = ran.stderr.splitlines()[-1]
    assert last == "error: this is a bug in cifargan: ZeroDivisionError('nobody foresaw this')"
    assert "ZeroDivisionError: nobody foresaw this" in (tmp_path / "run" / "train.log").read_text()
    assert '"failed"' in (tmp_path / "run" / "status.json").read_text()


@pytest.mark.parametrize("arguments", ["--traceback train trainer.stpes=3", "train trainer.stpes=3 --traceback"])
def test_traceback_shows_where_an_error_comes_from(arguments: str, command: Command) -> None:
    ran = command(*arguments.split())
    assert ran.returncode == 2
    assert ran.stderr.startswith("Traceback (most recent call last)")
    assert ran.stderr.splitlines()[-1].startswith("error: trainer.stpes: no such setting")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("wrong"), 2, "wrong"),
        (KeyboardInterrupt(), 130, "stopped"),
        (InterruptedRunError(15, "stopped at step 3"), 143, "stopped at step 3"),
        (InterruptedRunError(2, "stopped at step 3"), 130, "stopped at step 3"),
        (MemoryError(), 2, "out of memory: "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "out of memory: "),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/x/y"), 2, "the disk is full at /x/y: "),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 2, "cannot use /x/y (Permission denied): "),
        (OSError(errno.EROFS, "Read-only file system", "/x/y"), 2, "cannot use /x/y (Read-only file system): "),
        (HydraException("two\n  lines\nfull_key: a.b\nobject_type=dict"), 2, "two lines"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/x/y"), 1, None),
        (RuntimeError("anything"), 1, None),
        (KeyError("anything"), 1, None),
    ],
)
def test_explanations_and_exit_codes(error: BaseException, code: int, message: str | None) -> None:
    assert exit_code(error) == code
    explained = explain(error)
    assert explained == message if message is None else str(explained).startswith(message)


def test_groups_and_options_are_the_shipped_ones() -> None:
    assert {"model", "loss", "data", "experiment"} <= set(groups())
    assert options("loss") == ["bce", "hinge", "hinge_smooth", "rpgan", "wasserstein", "wgan_gp"]
    assert options("nothing") == []


def test_the_folder_named_in_hydra_run_dir_may_be_the_users_own(
    command: Command, quick: tuple[str, ...], tmp_path: Path
) -> None:
    """A failed start removes what it made, not the folder's neighbours or parents."""
    (tmp_path / "mine" / "empty").mkdir(parents=True)
    the_error(command("train", *quick, "hydra.run.dir=mine/run", "trainer.steps=0"))
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["empty"]
    shutil.rmtree(tmp_path / "mine" / "empty")
    the_error(command("train", *quick, "hydra.run.dir=mine/run", "trainer.steps=0"))
    assert (tmp_path / "mine").is_dir()
