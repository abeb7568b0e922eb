"""`cifargan train`: compose a configuration, claim a run directory, and let the one loop run."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cifargan.cli.finetuning import starting_point, with_init
from cifargan.cli.launching import require_launcher
from cifargan.cli.preflight import preflight
from cifargan.cli.sweep import Sweep, plan, split_sweep, uses_processes
from cifargan.cli.sweep_summary import summarise
from cifargan.compose import CONFIG_DIR, SWEEP, key_of, quoted, reject_null_groups, split_flags
from cifargan.config import parse, plain
from cifargan.distributed import is_rank_zero, on_all_ranks, on_rank_zero, process_group, world_size
from cifargan.errors import UserError
from cifargan.explain import report
from cifargan.files import write_atomically
from cifargan.processes import agreed_overrides, met_by_all, quiet_others, tell_of_others, train_in_processes
from cifargan.resume import keep_settings
from cifargan.run_log import RunLog
from cifargan.runs.checkpoint import CheckpointStore, State
from cifargan.runs.directory import RunDirectory, Status
from cifargan.runs.networks import describe
from cifargan.runs.provenance import device_name
from cifargan.schema import conf_dir
from cifargan.train import build_trainer
from cifargan.training.interruption import InterruptedRunError
from cifargan.training.recovery import DivergedError
from cifargan.training.trainer import Result

log = logging.getLogger(__name__)

HELP = """cifargan train [key=value ...]

Trains a GAN under outputs/<name>/<time>/. Every setting can be given; groups of
settings are chosen by name, and `cifargan ls GROUP` explains them:
  experiment=   a whole recipe           model=      generator, discriminator
  loss=         bce hinge wasserstein    data=       cifar10 folder digits
  regularizer=  none lecam cr            augment=    none diffaugment
  optimizer=    adam rmsprop             evaluator=  inception auto none ...
  seed=1 device=cpu precision=bf16 deterministic=true trainer.steps=50000 ...
  resume=RUN    go on exactly where a run stopped; resume=latest: the newest, or
                start one: what a job script can say again and again
  debug=fast    two steps of everything, on digits
  -m            a run for each combination of comma-separated values, a table;
                with sweep=resume only those that the sweep lacks
  hydra/launcher=joblib hydra.launcher.n_jobs=2   two runs of a sweep at a time
  --cfg job     show the composed configuration and stop
  --config-dir DIR   configs of your own (`cifargan cp` copies one to be edited)

examples:
  cifargan train experiment=quickstart
  cifargan train model=biggan loss=hinge augment=diffaugment trainer.steps=50000
  cifargan train -m model=dcgan,cdcgan loss=bce,hinge seed=1,2
"""


@dataclass(frozen=True)
class Outcome:
    """How one job ended."""

    directory: Path
    overrides: list[str]
    result: Result | None
    error: Exception | None


def run(arguments: list[str]) -> int:
    """Train once, or once for each job of a sweep."""
    if "--help" in arguments or "-h" in arguments:
        print(HELP, end="")
        return 0
    with process_group():
        return compose_and_train(arguments)


def compose_and_train(arguments: list[str]) -> int:
    """As `run`, where all processes of a run have found each other."""
    outcomes: list[Outcome] = []
    with met_by_all():
        flags, overrides = split_flags(arguments)
        sweep = any(flag in SWEEP for flag in flags)
        reject_null_groups(overrides)
        overrides, go_on = split_sweep(overrides, sweep=sweep)
        own = any(flag in CONFIG_DIR for flag in flags)
        require_launcher(overrides, sweep=sweep or bool(flags), own=own)
        overrides = agreed_overrides(overrides, sweep=sweep)
        command = ["cifargan train", *flags, *overrides]
        if sweep:
            directory, jobs = plan(overrides, resume=go_on)
            return run_sweep(Sweep(job, command, directory, jobs, uses_processes(overrides)))
        with_hydra(lambda config: outcomes.append(job(config, command)), command)
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return 0


def with_hydra(task: Callable[[DictConfig], None], command: list[str]) -> None:
    """Let Hydra compose what a command line asks for, and call `task` with it."""
    # Hydra reads the command line itself, and hides errors unless told not to; they are told by `report`.
    sys.argv = with_init(command)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(task)()


def run_sweep(sweep: Sweep) -> int:
    """Run the jobs of a sweep and print a table of them, however it ends."""
    own = [word for word in sweep.command if key_of(word) not in ("hydra.sweep.dir", "hydra.sweep.subdir")]
    with sweep.running():
        with_hydra(sweep, [*own, f"hydra.sweep.dir={quoted(sweep.directory)}", "hydra.sweep.subdir=."])
    return summarise(sweep)


def job(config: DictConfig, command: list[str], folder: Path | None = None) -> Outcome:
    """One training, its errors caught: a failing job must not end the sweep that it is part of."""
    context = HydraConfig.get()
    sweep = context.mode == RunMode.MULTIRUN
    directory = RunDirectory(folder or Path(context.runtime.output_dir))
    overrides = [override for override in context.overrides.task if key_of(override) != "resume"]
    with RunLog(directory.path / "train.log") as run_log:
        # A line that a full disk does not take is on the terminal all the same.
        run_log.file.handleError = _pass_over  # type: ignore[method-assign]
        try:
            resolved = OmegaConf.create(plain(config))
            if resolved.resume is not None:
                resolved = on_rank_zero(partial(keep_settings, resolved, directory.path))
            on_all_ranks(partial(parse, resolved))
            result = claim_and_train(resolved, directory, overrides, command, run_log)
            return Outcome(directory.path, overrides, result, None)
        except Exception as error:
            if sweep and not directory.holds_a_run():
                # The folder is this job's own, and the only place where one would look for the reason.
                run_log.begin()
            run_log.error(error)
            if sweep:
                report(error)
            return Outcome(directory.path, overrides, None, error)
        finally:
            remove_if_empty(directory.path, Path(OmegaConf.select(config, "output_root") or "outputs"))


def _pass_over(record: logging.LogRecord) -> None:
    """What to do about a line that could not be written to the log file."""


def remove_if_empty(directory: Path, root: Path) -> None:
    """Leave no empty folder behind a typo: neither the run's own nor those between it and `root`."""
    for path in (directory, *directory.parents):
        if path == directory or root.absolute() in path.parents:
            with contextlib.suppress(OSError):  # which is how a folder says that it is not empty
                path.rmdir()


def claim_and_train(
    config: DictConfig, directory: RunDirectory, overrides: list[str], command: list[str], run_log: RunLog
) -> Result:
    """Train as the only process on this run directory, which a new run first has to claim."""
    if config.trainer.devices > 1 and world_size() == 1:
        return train_in_processes(config, directory, overrides, command, run_log, claim_and_train)
    quiet_others()
    with contextlib.ExitStack() as stack:
        try:
            before = on_rank_zero(lambda: claim(directory, stack, new=config.resume is None))
            return train(config, directory, overrides, command, run_log, before)
        except Exception as error:
            tell_of_others(error, run_log)
            raise


def claim(directory: RunDirectory, stack: contextlib.ExitStack, *, new: bool) -> dict[str, Any]:
    """Lock a run directory until `stack` is left, and say how the run in it had stood before."""
    if new:
        directory.claim()
    # Whether a process had died here cannot be told any more by whoever holds the lock himself.
    before = directory.status()
    lock = stack.enter_context(directory.lock())

    def forget_failed_start() -> None:
        if not directory.holds_a_run():
            lock.forget()

    stack.callback(forget_failed_start)
    if new:
        # Once more: another process may have begun a run here before this one had the lock.
        directory.claim()
    return before


def train(
    config: DictConfig,
    directory: RunDirectory,
    overrides: list[str],
    command: list[str],
    run_log: RunLog,
    before: dict[str, Any],
) -> Result:
    """Start or go on with the run in `directory`, whose status was `before`, and record how it ends."""
    found = on_rank_zero(lambda: newest_checkpoint(directory, before)) if config.resume is not None else None
    state = None
    if found is not None:
        state = found[1]
        if message := on_rank_zero(partial(over, state, config, directory, before)):
            log.info("%s %s", directory.path, message)
            return Result(state["step"], state["best"]["step"], state["best"]["score"])
    first_step = 0 if state is None else int(state["step"])
    # A run that was interrupted before its first checkpoint starts where it had started.
    fresh = state is None and config.init is not None
    start = on_all_ranks(lambda: starting_point(config.init, Path(config.output_root))) if fresh else None
    trainer = build_trainer(config, directory, state=state, start=start)

    def begin() -> None:
        # Everything fits: from here on the folder holds a run, and this start belongs to it.
        run_log.begin()
        directory.remove_partial_files()
        if found is not None:
            trainer.checkpoints.mend(*found)
        save_config(config, directory, overrides)
        if state is not None:
            died = ", whose process died" if before.get("died") else ""
            log.info("going on from step %d of %s%s", first_step, directory.path, died)
        images = trainer.images
        directory.add_provenance(
            command=command,
            seed=config.seed,
            device=device_name(trainer.gan.device),
            processes=world_size(),
            precision=trainer.gan.precision.name,
            speed=trainer.gan.switches.names(),
            first_step=first_step,
            data={"name": images.name, "splits": list(images.splits), "fingerprint": images.fingerprint},
            classes=list(images.classes) if trainer.gan.generator.num_classes else [],
            **({} if start is None else {"init": start.facts()}),
        )
        directory.set_status("running", step=first_step)
        trainer.tracker.text("config", OmegaConf.to_yaml(config))
        for line in preflight(config, trainer, directory):
            log.info(line)
        for line in [] if start is None else start.lines(images.classes):
            log.info(line)

    on_rank_zero(begin)
    status: Status = "failed"
    details: dict[str, Any] = {}
    try:
        result = trainer.fit()
        status = "finished"
        details = {"stopped_early": True} if result.stopped_early else {}
    except InterruptedRunError as error:
        status = "interrupted"
        done = trainer.step == trainer.schedule.steps
        advice = f"go on with: cifargan {'evaluate ' if done else 'train resume='}{directory.path}"
        raise InterruptedRunError(error.signal, f"{error}; {advice}") from error
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except DivergedError:
        status = "diverged"
        raise
    finally:
        try:
            if is_rank_zero():
                directory.set_status(status, step=trainer.step, **trainer.recovered(), **details)
        except UserError as error:
            # It must not hide why the run ended; without it the run counts as interrupted, which it was.
            log.warning("%s", error)
    log.info("finished: %s", directory.path)
    return result


def newest_checkpoint(directory: RunDirectory, before: dict[str, Any]) -> tuple[Path, State] | None:
    """The checkpoint to go on from and its state; None for a run that has not written any yet.

    Raises:
        UserError: there were some once, so that a new start would throw away what had been trained.
    """
    store = CheckpointStore(directory.checkpoints)
    if found := store.newest_whole():
        describe(found[1], found[0])
        return found
    if damaged := store.steps():
        names = ", ".join(path.name for path in damaged)
        raise UserError(
            f"every checkpoint of {directory.path} is damaged ({names}): put back a copy, or start a new run"
        )
    if before.get("status") in ("finished", "interrupted") and not before.get("died"):
        raise UserError(
            f"{directory.path} was trained to step {before.get('step')}, but its checkpoints are gone: put them back, "
            "or start a new run"
        )
    return None


def over(state: State, config: DictConfig, directory: RunDirectory, before: dict[str, Any]) -> str | None:
    """What to say of a run that has nothing left to do; None for one that goes on."""
    step = int(state["step"])
    if step >= config.trainer.steps:
        if before.get("status") == "finished":
            return f"is finished (step {step}): raise trainer.steps to go on"
        # Its process ended after the last checkpoint and before it could say so.
        directory.set_status("finished", step=step)
        return f"is trained to its last step ({step}); its final scores: cifargan evaluate {directory.path}"
    then = describe(state, directory.checkpoints).config
    decides = ("evaluator.stop_after", "evaluator.target", "trainer.steps")
    same = all(OmegaConf.select(then, key) == OmegaConf.select(config, key) for key in decides)
    if same and before.get("stopped_early") and before.get("step") == step:
        return f"has ended early (step {step}): change {' or '.join(decides)} to go on"
    return None


def save_config(config: DictConfig, directory: RunDirectory, overrides: list[str]) -> None:
    """Keep the resolved configuration and the overrides, one numbered folder for each start."""
    starts = len(list(directory.path.glob(".hydra*")))
    folder = directory.path / (".hydra" if starts == 0 else f".hydra_{starts}")
    folder.mkdir()
    write_atomically(folder / "config.yaml", OmegaConf.to_yaml(config).encode())
    # Last: a start counts as one to be replayed when this is there.
    write_atomically(folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(overrides)).encode())
