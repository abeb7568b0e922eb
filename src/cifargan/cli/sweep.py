"""`cifargan train -m`: the jobs of a sweep, the folder of each, and how the sweep ends."""

import hashlib
import json
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cifargan.cli.launching import beside_others, hand_back
from cifargan.compose import INIT, key_of, value_of
from cifargan.config_files import LAUNCHER
from cifargan.errors import UserError, did_you_mean
from cifargan.explain import explain
from cifargan.files import write_json
from cifargan.runs.directory import RunDirectory
from cifargan.runs.lock import is_locked
from cifargan.schema import conf_dir
from cifargan.training.interruption import Interruption
from cifargan.untrusted import readable

if TYPE_CHECKING:
    from cifargan.cli.train import Outcome

FILE = "summary.json"  # in the sweep's folder: its jobs, and their results once it has ended
STOPPED = ".stopped"  # in the sweep's folder: no further job starts; holds the number of the signal
POLL = 0.5  # s
NO_IDENTITY = ("resume", "sweep", "output_root")  # settings that do not change what a job trains
READABLE = 60  # characters of a folder's name that say which job it holds

Jobs = dict[str, tuple[str, ...]]  # the overrides of each job, by the name of its folder


@dataclass
class Sweep:
    """The jobs of a sweep; Hydra calls it with the configuration of each, in any process.

    Attributes:
        train: trains one job in a folder and returns how it ended.
        command: the command line, for the provenance.
        directory: the sweep's folder.
        jobs: all jobs that were ever started in that folder, and those of this command line.
        apart: whether each job runs in a process of its own.
    """

    train: "Callable[[DictConfig, list[str], Path], Outcome]"
    command: list[str]
    directory: Path
    jobs: Jobs = field(default_factory=dict)
    apart: bool = False

    def __call__(self, config: DictConfig) -> None:
        """Train, resume or skip one job."""
        run = RunDirectory(self.directory / folder_of(HydraConfig.get().overrides.task))
        status = run.status().get("status")
        if self.stop_signal is not None or status == "finished":
            return
        if status == "running":
            tell(f"{run.path} is being trained by another process: skipped")
            return
        if run.holds_a_run():
            config.resume = str(run.path)
        run.path.mkdir(parents=True, exist_ok=True)
        with beside_others(self, run, config) if self.apart else nullcontext():
            outcome = self.train(config, self.command, run.path)
        error, number = outcome.error, getattr(outcome.error, "signal", None)
        if self.apart:
            reason = (
                "finished" if error is None else explain(error) or f"failed: {error!r}, see train.log in its folder"
            )
            tell(f"job {run.path.name}: {readable(reason)}")
            if number is not None:
                hand_back(number)
        elif number is not None:
            self.stop(number)  # in one process, a signal to the job is meant for the sweep

    @contextmanager
    def running(self) -> Iterator[None]:
        """While entered, Hydra runs the jobs. A signal lets running jobs save, and no other job starts.

        Raises:
            UserError, HydraException: the overrides of a job cannot be composed.
        """
        sweep = self

        class Stopping(Interruption):
            def _note(self, number: int, frame: FrameType | None) -> None:
                super()._note(number, frame)
                sweep.stop(number)

        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(self.directory / FILE, {"jobs": [{"folder": f, "overrides": o} for f, o in self.jobs.items()]})
        (self.directory / STOPPED).unlink(missing_ok=True)
        try:
            with Stopping() if self.apart else nullcontext():
                yield
                while self.apart and self.stop_signal and any(is_locked(self.directory / name) for name in self.jobs):
                    time.sleep(POLL)
        except KeyboardInterrupt:
            self.stop(signal.SIGINT)
        except (UserError, HydraException, OmegaConfBaseException):
            if not any(path.is_dir() for path in self.directory.iterdir()):
                self._remove()
            raise
        except Exception as error:
            if not self.apart:
                raise
            if self.stop_signal is None:
                tell(f"error: the launcher failed ({type(error).__name__}: {(str(error) or '-').splitlines()[0]})")

    def _remove(self) -> None:
        """Remove the folder of a sweep that has not begun."""
        for name in (FILE, "multirun.yaml"):  # Hydra writes the second
            (self.directory / name).unlink(missing_ok=True)
        with suppress(OSError):  # a folder that is not empty stays
            for path in (self.directory, *self.directory.parents[:2]):
                path.rmdir()

    def stop(self, number: int) -> None:
        """Let no further job start, and let those in other processes save and end."""
        (self.directory / STOPPED).write_text(str(int(number)))

    @property
    def stop_signal(self) -> int | None:
        """The signal that stopped the sweep; None while it runs."""
        try:
            return int((self.directory / STOPPED).read_text() or signal.SIGINT)
        except FileNotFoundError:
            return None


def plan(overrides: list[str], *, resume: bool) -> tuple[Path, Jobs]:
    """The folder and the jobs of the sweep that these overrides mean.

    Raises:
        UserError: a setting is an interval, a combination is there twice, or the folder holds another sweep.
    """
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        settings = parser.parse_overrides([o for o in overrides if not is_hydras(o)])
        for one in settings:
            if one.is_sweep_override() and not one.is_discrete_sweep():
                raise UserError(f"{one.input_line}: a sweep needs a list of values: cifargan tune searches intervals")
        (combinations,) = BasicSweeper.split_arguments(settings, None)
    wanted = {folder_of(job): tuple(job) for job in combinations}
    if len(wanted) < len(combinations):
        raise UserError("a combination is there twice: give each value once")
    values = {key_of(o): value_of(o) for o in overrides}
    root = Path(values.get("output_root", "outputs")).absolute() / "sweeps"
    given = values.get("hydra.sweep.dir")
    directory = root / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    if given is not None:
        directory = Path(given.replace("\\'", "'")).absolute()
    if "${" in str(directory) or "\\" in str(directory):
        raise UserError(f"{directory}: a sweep cannot lie in a folder with ${{ or a backslash in its name: rename it")
    if resume and given is None:
        directory = _newest_with(wanted, root) or directory
    known = jobs_in(directory)
    if known and not resume:
        raise UserError(f"{directory} already holds a sweep: resume it with sweep=resume, or choose another folder")
    if resume and known:
        done = sum(RunDirectory(directory / name).status().get("status") == "finished" for name in wanted)
        tell(f"{directory}: {len(wanted) - done} of {len(wanted)} jobs remain")
    return directory, {**known, **wanted}


def _newest_with(wanted: Jobs, root: Path) -> Path | None:
    """The newest sweep that has all jobs; None where no sweep has any of them."""
    found = {path.parent: wanted.keys() & jobs_in(path.parent).keys() for path in sorted(root.glob(f"*/{FILE}"))}
    if same := [path for path, jobs in found.items() if len(jobs) == len(wanted)]:
        return same[-1]
    if some := [path for path, jobs in found.items() if jobs]:
        raise UserError(
            f"sweep=resume: {some[-1]} has {len(found[some[-1]])} of these {len(wanted)} jobs: add the others to it by "
            f"hydra.sweep.dir={some[-1]}, or leave out sweep=resume to start a new sweep"
        )
    tell(f"no sweep of these jobs under {root} yet: starting one")
    return None


def folder_of(overrides: Iterable[str]) -> str:
    """The name of a job's folder: a function of what it trains, however the overrides are ordered."""
    # What `init` chooses follows from `init`.
    counts = (o for o in overrides if key_of(o) not in NO_IDENTITY and value_of(o) != INIT)
    own = sorted(o for o in counts if not is_hydras(o))
    words = (f"{key_of(o)}-{value_of(o)}" for o in own if "." not in key_of(o))
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", "_".join(words))[:READABLE].strip("-_")
    return f"{name}-{hashlib.sha256(chr(10).join(own).encode()).hexdigest()[:8]}".lstrip("-")


def jobs_in(directory: Path) -> Jobs:
    """The jobs that a sweep's file lists; none where it cannot be read."""
    try:
        entries = json.loads((directory / FILE).read_text(encoding="utf-8"))["jobs"]
        # The file may come from anyone: a folder is computed, not read.
        return {folder_of(entry["overrides"]): tuple(entry["overrides"]) for entry in entries}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def is_hydras(override: str) -> bool:
    """Whether an override is for Hydra itself."""
    return key_of(override).startswith(("hydra.", "hydra/"))


def uses_processes(overrides: list[str]) -> bool:
    """Whether a launcher is chosen that runs each job in a process of its own."""
    return any(key_of(o) == LAUNCHER and value_of(o) != "basic" for o in overrides)


def tell(line: str) -> None:
    """Print a line about the sweep, also where the logs are those of its jobs."""
    print(line, file=sys.stderr, flush=True)


def split_sweep(overrides: list[str], *, sweep: bool) -> tuple[list[str], bool]:
    """The overrides without `sweep=`, which Hydra does not know, and whether it says to resume.

    Raises:
        UserError: it has another value, or there is no sweep.
    """
    rest = [override for override in overrides if key_of(override) != "sweep"]
    asked = [value_of(override) for override in overrides if key_of(override) == "sweep"]
    if not asked or asked[-1] in ("", "null"):
        return rest, False
    if asked[-1] != "resume":
        raise UserError(f"sweep={asked[-1]}: {did_you_mean(asked[-1], ['resume'])[2:] or 'there is only sweep=resume'}")
    if not sweep:
        raise UserError("sweep=resume resumes a sweep, which takes -m; to resume one run use resume=RUN")
    return rest, True
