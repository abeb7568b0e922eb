"""`cifargan train`: compose a configuration, claim a run directory, and let the one loop run."""

import contextlib
import logging
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cifargan.build import build_trainer, check, plain
from cifargan.cli.errors import explain, report
from cifargan.cli.overrides import SWEEP, key_of, reject_null_groups, split_flags, with_resume
from cifargan.cli.preflight import preflight
from cifargan.cli.run_log import RunLog
from cifargan.config import conf_dir
from cifargan.errors import UserError
from cifargan.files import write_atomically
from cifargan.training.checkpoint import CheckpointStore, State, describe
from cifargan.training.interruption import InterruptedRunError
from cifargan.training.recovery import DivergedError
from cifargan.training.run_directory import RunDirectory, Status, device_name
from cifargan.training.trainer import Result

log = logging.getLogger(__name__)

HELP = """cifargan train [key=value ...]

Trains a GAN under outputs/<name>/<time>/. Every setting can be given as key=value, and
groups of settings are chosen by name:
  experiment=  a whole recipe          model=      generator and discriminator
  loss=        bce hinge wasserstein   data=       cifar10 folder digits
  regularizer= none lecam              augment=    none diffaugment
  evaluator=   inception inception_full efficientnet_lite0 dinov2 auto none
  optimizer=   adam rmsprop            trainer=    default

  seed=1  device=cpu  precision=bf16  deterministic=true  trainer.steps=50000  trainer.batch_size=64
  resume=RUN   go on exactly where a run stopped
  resume=latest  the same with the newest run, or start one where there is none yet:
               what a job script can say again and again
  debug=fast   two steps of everything, on digits
  -m           a run for each combination of comma-separated values
  --cfg job    show the composed configuration and stop

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
    flags, overrides = split_flags(arguments)
    sweep = any(flag in SWEEP for flag in flags)
    reject_null_groups(overrides)
    overrides = with_resume(overrides, sweep=sweep)
    # Hydra reads the command line itself, and hides errors unless told not to; they are told by `report`.
    sys.argv = ["cifargan train", *flags, *overrides]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    outcomes: list[Outcome] = []

    @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
    def task(config: DictConfig) -> None:
        outcomes.append(job(config, sys.argv))

    task()
    if sweep:
        return summarise(outcomes)
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return 0


def job(config: DictConfig, command: list[str]) -> Outcome:
    """One training, its errors caught: a failing job must not end the sweep that it is part of."""
    context = HydraConfig.get()
    sweep = context.mode == RunMode.MULTIRUN
    directory = RunDirectory(Path(context.runtime.output_dir))
    overrides = [override for override in context.overrides.task if key_of(override) != "resume"]
    with RunLog(directory.path / "train.log") as run_log:
        # A line that a full disk does not take is on the terminal all the same.
        run_log.file.handleError = _pass_over  # type: ignore[method-assign]
        try:
            resolved = OmegaConf.create(plain(config))
            check(resolved)
            result = claim_and_train(resolved, directory, overrides, command, run_log)
            return Outcome(directory.path, overrides, result, None)
        except Exception as error:
            if sweep and isinstance(error, InterruptedRunError):
                # One Ctrl-C ends a sweep, not one of its jobs.
                raise SystemExit(report(error)) from error
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
    new = config.resume is None
    if new:
        directory.claim()
    # Whether a process had died here cannot be told any more by whoever holds the lock himself.
    before = directory.status()
    with directory.lock() as lock:
        try:
            if new:
                # Once more: another process may have begun a run here before this one had the lock.
                directory.claim()
            return train(config, directory, overrides, command, run_log, before)
        finally:
            if not directory.holds_a_run():
                lock.forget()


def train(
    config: DictConfig,
    directory: RunDirectory,
    overrides: list[str],
    command: list[str],
    run_log: RunLog,
    before: dict[str, Any],
) -> Result:
    """Start or go on with the run in `directory`, whose status was `before`, and record how it ends."""
    found = newest_checkpoint(directory, before) if config.resume is not None else None
    state = None
    if found is not None:
        state = found[1]
        if message := over(state, config, directory, before):
            log.info("%s %s", directory.path, message)
            return Result(state["step"], state["best"]["step"], state["best"]["score"])
    first_step = 0 if state is None else int(state["step"])
    trainer = build_trainer(config, directory, state=state)
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
        device=device_name(trainer.game.device),
        precision=trainer.game.precision.name,
        speed=trainer.game.switches.names(),
        first_step=first_step,
        data={"name": images.name, "splits": list(images.splits), "fingerprint": images.fingerprint},
    )
    directory.set_status("running", step=first_step)
    trainer.tracker.text("config", OmegaConf.to_yaml(config))
    for line in preflight(config, trainer, directory):
        log.info(line)
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


def summarise(outcomes: list[Outcome]) -> int:
    """Print a table of a sweep's jobs; 2 if any failed."""
    print(f"\n{'job':>3}  {'status':8}  {'step':>8}  {'best':>10}  overrides")
    for number, outcome in enumerate(outcomes):
        result = outcome.result
        status = "failed" if result is None else "finished"
        step = "-" if result is None else str(result.step)
        best = "-" if result is None or result.best_score is None else f"{result.best_score:.4g}"
        print(f"{number:>3}  {status:8}  {step:>8}  {best:>10}  {shlex.join(outcome.overrides)}")
        if outcome.error is not None:
            print(f"     {explain(outcome.error) or repr(outcome.error)}")
    failed = sum(outcome.error is not None for outcome in outcomes)
    print(f"{len(outcomes) - failed} of {len(outcomes)} jobs finished, in {outcomes[0].directory.parent}")
    return 2 if failed else 0
