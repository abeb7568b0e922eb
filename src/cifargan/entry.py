"""Train: the one entry below the command line. Compose, claim the run directory, build, resume, fit."""

import contextlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifargan.build import build_trainer
from cifargan.compose import compose, init_file, one_line_errors, own_hydra, reject_null_groups, with_init
from cifargan.config import Parts, parse, plain
from cifargan.distributed import is_rank_zero, on_all_ranks, on_rank_zero, process_group, world_size
from cifargan.errors import UserError
from cifargan.files import write_atomically
from cifargan.processes import agreed_overrides, met_by_all, quiet_others, tell_of_others, train_in_processes
from cifargan.resume import keep_settings, newest_checkpoint, nothing_left
from cifargan.run_log import RunLog, preflight, terminal_log
from cifargan.runs.directory import RunDirectory, Status
from cifargan.runs.networks import read_networks
from cifargan.runs.provenance import device_name
from cifargan.training.finetune import Start
from cifargan.training.interruption import InterruptedRunError
from cifargan.training.loop import Trainer
from cifargan.training.recovery import DivergedError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        directory: the run's folder.
        step: generator updates done.
        scores: the final scores by their keys, such as `fid_n50000_train`; empty where nothing was scored at the end.
        best_step: the step of the best score in training; None without scores.
        best_score: that score; lower is better.
        stopped_early: whether early stopping or a target ended it.
    """

    directory: Path
    step: int
    scores: dict[str, float]
    best_step: int | None = None
    best_score: float | None = None
    stopped_early: bool = False


@dataclass(frozen=True)
class Run:
    """One start of a run.

    Attributes:
        parts: the parsed configuration.
        directory: the run's folder.
        overrides: what the configuration was composed from.
        command: the command line, for the provenance.
        log: the run's log.
    """

    parts: Parts
    directory: RunDirectory
    overrides: Sequence[str]
    command: Sequence[str]
    log: RunLog


def train(overrides: Sequence[str] = (), config_dir: str | Path | None = None, *, config_name: str = "train") -> Result:
    """Train as `cifargan train OVERRIDES` does: `cifargan.train(["experiment=biggan", "trainer.steps=100"])`.

    The program's arguments, signal handlers, logging and Hydra are afterwards as they were.

    Args:
        overrides: settings and groups, `key=value`, without quotes for a shell.
        config_dir: a folder with configs of your own.
        config_name: the root config, which may lie in that folder.

    Returns:
        How the run ended, and its folder.

    Raises:
        UserError: a setting that cannot be, or anything else that the user can put right.
        InterruptedRunError: a signal asked the run to stop; its checkpoint is written.
    """
    flags = [] if config_dir is None else ["--config-dir", str(config_dir)]
    flags += [] if config_name == "train" else ["--config-name", config_name]
    with terminal_log(), process_group(), met_by_all(), own_hydra(config_dir, config_name):
        reject_null_groups(list(overrides))
        agreed = agreed_overrides(list(overrides), sweep=False)
        with one_line_errors():
            composed = compose(with_init(agreed))
        if composed.config.get("trainer", {}).get("devices", 1) != 1 and _is_notebook():
            raise UserError("trainer.devices: a notebook trains on one device; use `cifargan train` for several")
        command = ["cifargan train", *flags, *agreed]
        return run(composed.config, composed.directory, overrides=composed.overrides, command=command)


def run(
    config: DictConfig,
    directory: Path,
    *,
    overrides: Sequence[str] = (),
    command: Sequence[str] = (),
    keep_log: bool = False,
) -> Result:
    """Train in a run directory; where `config.resume` is set, resume the run there.

    Args:
        config: the composed configuration.
        directory: the run's folder; a new run makes it.
        overrides: what the configuration was composed from; a later resumption replays them.
        command: the command line, for the provenance.
        keep_log: whether the log of a run that cannot start is written all the same.

    Raises:
        UserError: as `train`.
    """
    place = RunDirectory(directory.absolute())
    with RunLog(place.path / "train.log") as run_log:
        try:
            with one_line_errors():
                resolved = OmegaConf.create(plain(config))
            if resolved.get("resume") is not None:
                resolved = on_rank_zero(partial(keep_settings, resolved, place.path))
            # Every rank parses: parts cannot be sent from one to another.
            parts = on_all_ranks(partial(parse, resolved))
            start = Run(parts, place, overrides, command, run_log)
            return _in_processes(start) if parts.schedule.devices > 1 and world_size() == 1 else _claim_and_train(start)
        except Exception as error:
            if keep_log and not place.holds_a_run():
                place.path.mkdir(parents=True, exist_ok=True)
                run_log.begin()
            run_log.error(error)
            raise
        finally:
            _remove_if_empty(place.path, Path(OmegaConf.select(config, "output_root") or "outputs"))


def _in_processes(run: Run) -> Result:
    """Train in as many processes of this machine as `trainer.devices` says."""
    result: Result = train_in_processes(
        run.parts.config, run.directory, list(run.overrides), list(run.command), run.log, _in_worker
    )
    return result


def _in_worker(
    config: DictConfig, directory: RunDirectory, overrides: list[str], command: list[str], run_log: RunLog
) -> Result:
    return _claim_and_train(Run(parse(config), directory, overrides, command, run_log))


def _claim_and_train(run: Run) -> Result:
    """Train as the only process, or group of processes, on this run directory."""
    quiet_others()
    with contextlib.ExitStack() as stack:
        try:
            before = on_rank_zero(lambda: _claim(run.directory, stack, new=run.parts.root.resume is None))
            return _start(run, before)
        except Exception as error:
            tell_of_others(error, run.log)
            raise


def _claim(directory: RunDirectory, stack: contextlib.ExitStack, *, new: bool) -> dict[str, Any]:
    """Lock a run directory until `stack` is left, and return the status that its run had before."""
    if new:
        directory.claim()
    # Whether a process died here cannot be seen any more by the holder of the lock.
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


def _start(run: Run, before: dict[str, Any]) -> Result:
    """Start or resume the run, whose status was `before`."""
    parts, directory, root = run.parts, run.directory, run.parts.root
    found = on_rank_zero(lambda: newest_checkpoint(directory, before)) if root.resume is not None else None
    state = None if found is None else found[1]
    if state is not None and (message := on_rank_zero(partial(nothing_left, state, parts.config, directory, before))):
        log.info("%s %s", directory.path, message)
        best = state["best"]
        return Result(directory.path, state["step"], {}, best["step"], best["score"], bool(before.get("stopped_early")))
    start = None
    if state is None and root.init is not None:  # also where a run was interrupted before its first checkpoint
        init = root.init
        start = on_all_ranks(lambda: Start(networks=read_networks(init_file(init, Path(root.output_root)))))
    trainer = build_trainer(parts, directory, state=state, start=start)

    def begin() -> None:
        # Everything fits: from here on the folder holds a run, and this start belongs to it.
        run.log.begin()
        directory.remove_partial_files()
        if found is not None:
            trainer.checkpoints.mend(*found)
        _record_start(run, trainer, start)
        if state is not None:
            died = ", whose process died" if before.get("died") else ""
            log.info("resuming from step %d of %s%s", trainer.step, directory.path, died)
        for line in preflight(parts, trainer, directory.path):
            log.info(line)
        for line in [] if start is None else start.lines(trainer.images.classes):
            log.info(line)

    on_rank_zero(begin)
    return _fit(trainer, directory)


def _record_start(run: Run, trainer: Trainer, start: Start | None) -> None:
    """Write the settings, the provenance and the status of this start."""
    number = len(list(run.directory.path.glob(".hydra*")))
    folder = run.directory.path / (f".hydra_{number}" if number else ".hydra")
    folder.mkdir()
    settings = OmegaConf.to_yaml(run.parts.config)
    write_atomically(folder / "config.yaml", settings.encode())
    # Last: a start can be resumed when this file is there.
    write_atomically(folder / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(list(run.overrides))).encode())
    images, gan = trainer.images, trainer.gan
    run.directory.add_provenance(
        command=list(run.command),
        seed=run.parts.root.seed,
        device=device_name(gan.device),
        processes=world_size(),
        precision=gan.precision.name,
        speed=gan.speed.names(),
        first_step=trainer.step,
        classes=list(images.classes) if gan.generator.num_classes else [],
        data={"name": images.name, "splits": list(images.splits), "fingerprint": images.fingerprint},
        **({} if start is None else {"init": start.facts()}),
    )
    run.directory.set_status("running", step=trainer.step)
    trainer.tracker.text("config", settings)


def _fit(trainer: Trainer, directory: RunDirectory) -> Result:
    """Train to the end, and record how the run ended."""
    status: Status = "failed"
    details: dict[str, Any] = {}
    try:
        fitted = trainer.fit()
        status = "finished"
        details = {"stopped_early": True} if fitted.stopped_early else {}
    except InterruptedRunError as error:
        status = "interrupted"
        done = trainer.step == trainer.schedule.steps
        advice = f"resume with: cifargan {'evaluate ' if done else 'train resume='}{directory.path}"
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
    scores = {record.key: record.value for record in fitted.records}
    return Result(directory.path, fitted.step, scores, fitted.best_step, fitted.best_score, fitted.stopped_early)


def _remove_if_empty(directory: Path, root: Path) -> None:
    """Leave no empty folder behind a failed start: neither the run's own nor those between it and `root`."""
    for path in (directory, *directory.parents):
        if path == directory or root.absolute() in path.parents:
            with contextlib.suppress(OSError):  # raised where the folder is not empty
                path.rmdir()


def _is_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None
