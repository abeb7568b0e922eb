"""The directory of a run: its files, its status, and how a run is found. Imports no torch, so that listing is quick."""

import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cifargan.errors import UserError, did_you_mean
from cifargan.files import remove_partial_files, write_json
from cifargan.runs.lock import RunLock, is_locked
from cifargan.runs.provenance import git_state, versions
from cifargan.untrusted import require_no_links_out, require_no_pipes

log = logging.getLogger(__name__)

Status = Literal["running", "finished", "interrupted", "diverged", "failed"]


@dataclass(frozen=True)
class RunDirectory:
    """`outputs/<name>/<time>/`: configuration, checkpoints, samples, scalars, provenance, status."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        """Where the training's sample grids lie."""
        return self.path / "samples"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: the same scalars that TensorBoard shows."""
        return self.path / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        """Every score of this run with all that decides it."""
        return self.path / "evaluation.json"

    def holds_a_run(self) -> bool:
        """Whether a training was started here before."""
        return (self.path / "provenance.json").is_file()

    def claim(self) -> None:
        """Make the folder for a new run.

        Raises:
            UserError: another run lies there, or the folder cannot be made.
        """
        if self.holds_a_run():
            raise UserError(
                f"{self.path} already holds a run: resume it by resume={self.path}, or choose another hydra.run.dir"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the run directory {self.path} ({error.strerror}): choose another output_root"
            ) from error

    def lock(self) -> RunLock:
        """A lock that keeps a second process off this run while it is entered; the folder must exist.

        Raises:
            UserError: something in the folder is a link to the outside, through which training would write.
        """
        require_no_links_out(self.path)
        return RunLock(self.path)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a small JSON file whole or not at all."""
        write_json(self.path / name, content)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a small JSON file; an empty dict where there is none, or none that can be read."""
        try:
            content = json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            log.warning("%s cannot be read (%s): it is ignored", self.path / name, error)
            return {}
        return content if isinstance(content, dict) else {}

    def set_status(self, status: Status, **details: Any) -> None:
        """Record the status of the run, and the process that sets it."""
        self.write_json("status.json", {"status": status, "time": time.time(), "pid": os.getpid(), **details})

    def status(self) -> dict[str, Any]:
        """The status that was written last, but `interrupted` if it says `running` and no process is on the run.

        `died` is then true. Empty where nothing was written. Where it is not known whether the run is locked, as in a copy
        of a run, it is what was written.
        """
        written = self.read_json("status.json")
        if written.get("status") == "running" and is_locked(self.path) is False:
            return {**written, "status": "interrupted", "died": True}
        return written

    def remove_partial_files(self) -> None:
        """Remove the partial files of killed processes; only while the lock is held."""
        for folder in (self.path, self.samples, *self.path.glob(".hydra*")):
            remove_partial_files(folder)

    def _sessions(self) -> list[dict[str, Any]]:
        sessions = self.read_json("provenance.json").get("sessions")
        if not isinstance(sessions, list) or not all(isinstance(session, dict) for session in sessions):
            return []
        return sessions

    def add_provenance(self, **facts: Any) -> None:
        """Record a start of this run: the settings, the code, the machine."""
        sessions = self._sessions()
        sessions.append(
            {
                "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "git": git_state(Path(__file__).parent),
                "versions": versions(),
                "platform": platform.platform(),
                **facts,
            }
        )
        self.write_json("provenance.json", {"sessions": sessions})

    def add_event(self, **facts: Any) -> None:
        """Record an event, such as a rollback, under the newest start."""
        sessions = self._sessions()
        if sessions:
            sessions[-1].setdefault("events", []).append({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts})
            self.write_json("provenance.json", {"sessions": sessions})


def all_runs(root: Path) -> list[RunDirectory]:
    """Every run below a folder, the one that was started last at the end."""
    found = [path.parent for path in root.rglob("provenance.json") if path.is_file()]
    return [RunDirectory(path) for path in sorted(found, key=_started)]


def _started(path: Path) -> tuple[str, int]:
    """When a run was first started, as text that sorts by time; within a second, when its file was written."""
    file = path / "provenance.json"
    try:
        return str(json.loads(file.read_text())["sessions"][0]["started"]), file.stat().st_mtime_ns
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return "", 0


def find_run(name: str | None, root: Path = Path("outputs")) -> RunDirectory:
    """A run by its path, by its path below `root`, or the newest (`latest` or None).

    Raises:
        UserError: there is no such run, or it holds a pipe or a device.
    """
    runs = all_runs(root)
    if name in (None, "latest"):
        if not runs:
            raise UserError(f"there is no run under {root}: train one first (cifargan train), or name its folder")
        require_no_pipes(runs[-1].path)
        return runs[-1]
    for path in (Path(str(name)), root / str(name)):
        if RunDirectory(path).holds_a_run():
            require_no_pipes(path)
            return RunDirectory(path)
    near = did_you_mean(str(name), [str(run.path) for run in runs])
    hint = near or (f"; the newest is {runs[-1].path}" if runs else f"; there is none under {root} either")
    raise UserError(f"there is no run at {name}{hint}")
