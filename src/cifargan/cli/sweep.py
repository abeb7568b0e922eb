"""`cifargan train -m`: which jobs a sweep has, where each lies, which of them are to do, and how the sweep ends."""

import itertools
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from cifargan.cli.launching import PLACES, beside_others, hand_back, line_about
from cifargan.compose import key_of
from cifargan.errors import UserError, did_you_mean
from cifargan.files import write_json
from cifargan.runs.directory import RunDirectory
from cifargan.runs.lock import is_locked
from cifargan.training.interruption import Interruption

if TYPE_CHECKING:
    from cifargan.cli.train import Outcome

SWEEPER = "hydra/sweeper=cifargan"
FILE = "summary.json"
STOPPED = ".stopped"  # in the sweep's folder: no further job begins; holds the number of the signal
POLL = 0.5  # s
NO_IDENTITY = ("resume", "sweep", "output_root")  # settings that say where and how, but not what


class LauncherError(UserError):
    """The launcher ended before its jobs did."""


@dataclass(frozen=True)
class Job:
    """One combination and the folder of its run."""

    directory: Path
    overrides: tuple[str, ...]


@dataclass
class Sweep:
    """The jobs of a sweep; called by Hydra with the configuration of one of them, in whatever process.

    Attributes:
        train: trains one job and says how it ended.
        command: the command line, for the provenance.
        resume: whether to go on with a sweep of the same jobs.
        directory: the sweep's folder, once it is planned.
        jobs: all of its jobs, once they are planned.
        apart: whether they run in other processes.
    """

    train: "Callable[[DictConfig, list[str]], Outcome]"
    command: list[str]
    resume: bool
    directory: Path = Path()
    jobs: list[Job] = field(default_factory=list)
    apart: bool = False

    def __call__(self, config: DictConfig) -> None:
        """Train one job, unless the sweep was stopped before its turn came."""
        directory = Path(HydraConfig.get().runtime.output_dir)
        if self.stop_signal is not None:
            if not any(directory.iterdir()):
                directory.rmdir()
            return
        run = RunDirectory(directory)
        if config.resume is None and run.holds_a_run():
            # The folder was this job's alone when the sweep gave it one: whoever launched it has done so before.
            config.resume = str(directory)
        with beside_others(self, run, config) if self.apart else nullcontext():
            outcome = self.train(config, self.command)
        number = getattr(outcome.error, "signal", None)
        if self.apart:
            # All that is on the terminal of it.
            tell(line_about(outcome))
            if number is not None:
                hand_back(number)
        elif number is not None:
            # One Ctrl-C ends a sweep, not one of its jobs.
            self.stop(number)

    def plan(self, config: DictConfig, jobs: Sequence[list[str]]) -> list[list[str]]:
        """Give each job its folder, and note the plan in the sweep's folder.

        Args:
            config: Hydra's configuration of the whole sweep.
            jobs: the overrides of each job.

        Returns:
            The overrides of the jobs that are to do, with what sends each to its folder.

        Raises:
            UserError: the folder holds another sweep, or several sweeps may be meant.
        """
        if any(key_of(override) == "hydra.sweep.subdir" for override in config.hydra.overrides.hydra):
            raise UserError("hydra.sweep.subdir: a sweep numbers the folders of its jobs: leave it out")
        wanted = {identity(job): job for job in jobs}
        if len(wanted) < len(jobs):
            raise UserError("a combination is there twice: give each value once")
        self.apart = config.hydra.runtime.choices["hydra/launcher"] != "basic"
        self.directory = self._choose(config, wanted)
        where = str(self.directory)
        if "${" in where or "\\" in where:
            raise UserError(f"{where}: no sweep can lie in a folder with ${{ or a backslash in its name: rename it")
        # Where the launcher makes a folder.
        config.hydra.sweep.dir = where
        known = jobs_in(self.directory)
        # Also those of whoever else has written here: no job goes on with a run that is none of its own.
        taken = [
            int(path.name)
            for path in (*self.directory.glob("*"), *(job.directory for job in known.values()))
            if path.name.isdecimal()
        ]
        numbers = itertools.count(max(taken, default=-1) + 1)
        for name, overrides in wanted.items():
            if name not in known:
                known[name] = Job(self.directory / str(next(numbers)), tuple(overrides))
        self.jobs = list(known.values())
        (self.directory / STOPPED).unlink(missing_ok=True)
        write_json(self.directory / FILE, {"jobs": [as_entry(job) for job in self.jobs]})
        todo = [call for name in wanted if (call := self._call(known[name]))]
        if self.resume:
            tell(f"{self.directory}: {len(todo)} of {len(wanted)} jobs to do")
        return todo

    def _choose(self, config: DictConfig, wanted: Iterable[tuple[str, ...]]) -> Path:
        """The folder of the sweep that is meant."""
        fresh = Path(str(config.hydra.sweep.dir)).absolute()
        if not self.resume:
            if (fresh / FILE).exists():
                raise UserError(
                    f"{fresh} already holds a sweep: go on with it by sweep=resume, or choose another folder"
                )
            return fresh
        if any(key_of(override) == "hydra.sweep.dir" for override in config.hydra.overrides.hydra):
            return fresh
        # Their names are the times of their starts.
        sweeps = sorted((path.parent for path in fresh.parent.glob(f"*/{FILE}")), reverse=True)
        names = set(wanted)
        found = {path: names & set(jobs_in(path)) for path in sweeps}
        if same := [path for path in sweeps if len(found[path]) == len(names)]:
            return same[0]
        if some := [path for path in sweeps if found[path]]:
            near = some[0]
            raise UserError(
                f"sweep=resume: {near} has {len(found[near])} of these {len(names)} jobs: add the others to it by "
                f"hydra.sweep.dir={near}, or leave out sweep=resume to start a new sweep"
            )
        tell(f"no sweep of these jobs under {fresh.parent} yet: starting one")
        return fresh

    def _call(self, job: Job) -> list[str]:
        """The overrides that train a job, or go on with it, in its folder; none where there is nothing to do."""
        directory = RunDirectory(job.directory)
        status = directory.status().get("status")
        if status == "finished":
            return []
        if status == "running":
            tell(f"{job.directory} is being trained by another process: it is left to it")
            return []
        call = [
            *job.overrides,
            f"hydra.sweep.dir={quoted(self.directory)}",
            f"hydra.sweep.subdir='{job.directory.name}'",
        ]
        return [*call, f"resume={quoted(job.directory)}"] if directory.holds_a_run() else call

    def watch(self, launch: Callable[[], object]) -> None:
        """Let `launch` run the jobs. Ctrl-C and SIGTERM let the running ones save, and begin no other."""
        if not self.apart:
            launch()
            return
        sweep = self

        class Stopping(Interruption):
            def _note(self, number: int, frame: FrameType | None) -> None:
                super()._note(number, frame)
                sweep.stop(number)

        with Stopping() as stopping:
            tell(f"each job runs in a process of its own, and has its log in its folder under {self.directory}")
            try:
                launch()
            except Exception as error:
                if stopping.requested is None:
                    reason = (str(error) or repr(error)).splitlines()[0]
                    raise LauncherError(f"the launcher gave up ({type(error).__name__}: {reason})") from error
            while stopping.requested is not None and any(is_locked(job.directory) for job in self.jobs):
                time.sleep(POLL)

    def stop(self, number: int) -> None:
        """Let no further job begin, and those that run in other processes save and end."""
        (self.directory / STOPPED).write_text(str(int(number)))

    @property
    def stop_signal(self) -> int | None:
        """The signal that stopped the sweep; None where none did."""
        try:
            return int((self.directory / STOPPED).read_text())
        except FileNotFoundError:
            return None
        except ValueError:  # cut off while it was written
            return int(signal.SIGINT)

    def _is_stopped(self) -> bool:
        return self.stop_signal is not None

    def tidy(self) -> None:
        """Remove what only running jobs have a use for."""
        shutil.rmtree(self.directory / PLACES, ignore_errors=True)


def tell(line: str) -> None:
    """Say something about the sweep, also where the logs are those of its jobs."""
    print(line, file=sys.stderr, flush=True)


def combinations(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of every job: each value of each setting with each of all others, the last one changing fastest.

    Raises:
        UserError: a setting has no list of values but an interval.
    """
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        elif override.is_sweep_override():
            raise UserError(f"{override.input_line}: an interval has no end of values: cifargan tune searches in it")
        else:
            values[key] = [str(override.input_line)]
    return [list(job) for job in itertools.product(*values.values())]


def identity(overrides: Iterable[str]) -> tuple[str, ...]:
    """What a job is, however it is written and wherever it lies."""
    return tuple(sorted(o for o in overrides if key_of(o) not in NO_IDENTITY and not key_of(o).startswith("hydra")))


def jobs_in(directory: Path) -> dict[tuple[str, ...], Job]:
    """The jobs that a sweep's folder says it has; none where it says nothing that can be read."""
    try:
        entries = json.loads((directory / FILE).read_text(encoding="utf-8"))["jobs"]
        jobs = [Job(directory / _name(entry["folder"]), _texts(entry["overrides"])) for entry in entries]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {}
    return {identity(job.overrides): job for job in jobs}


def _name(text: Any) -> str:
    # A file that somebody was sent must not lead elsewhere.
    if not isinstance(text, str) or not text.isdecimal():
        raise ValueError("a job's folder is a number")
    return text


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError("overrides are texts")
    return tuple(values)


def as_entry(job: Job) -> dict[str, Any]:
    """A job as the sweep's file holds it."""
    return {"folder": job.directory.name, "overrides": list(job.overrides)}


def quoted(path: Path) -> str:
    """A path as the value of an override."""
    return "'" + str(path).replace("'", "\\'") + "'"


def split_sweep(overrides: list[str], *, sweep: bool) -> tuple[list[str], bool]:
    """The overrides without `sweep=`, which is ours and none of Hydra's, and whether it says to resume.

    Raises:
        UserError: it says something else, or there is no sweep.
    """
    rest = [override for override in overrides if key_of(override) != "sweep"]
    asked = [override.partition("=")[2].strip("'\"") for override in overrides if key_of(override) == "sweep"]
    if not asked or asked[-1] in ("", "null"):
        return rest, False
    if asked[-1] != "resume":
        raise UserError(f"sweep={asked[-1]}: {did_you_mean(asked[-1], ['resume'])[2:] or 'there is only sweep=resume'}")
    if not sweep:
        raise UserError("sweep=resume goes on with a sweep, which takes -m; one run is gone on with by resume=RUN")
    return rest, True
