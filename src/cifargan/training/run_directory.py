"""The folder that a run leaves behind, and what it says about where its figures come from."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from cifargan.errors import UserError
from cifargan.files import write_json

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
        """Whether a training has been started here before."""
        return (self.path / "provenance.json").exists()

    def claim(self) -> None:
        """Make the folder for a new run.

        Raises:
            UserError: another run lies there, or the folder cannot be made.
        """
        if self.holds_a_run():
            raise UserError(
                f"{self.path} already holds a run: go on with it by resume={self.path}, or choose another hydra.run.dir"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"could not make the run directory {self.path}: {error.strerror}") from error

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a small JSON file whole or not at all."""
        write_json(self.path / name, content)

    def read_json(self, name: str) -> dict[str, Any]:
        """Read a small JSON file; an empty dict where there is none."""
        path = self.path / name
        if not path.exists():
            return {}
        content = json.loads(path.read_text())
        return content if isinstance(content, dict) else {}

    def set_status(self, status: Status, **details: Any) -> None:
        """Record how the run stands, with the process that says so."""
        self.write_json("status.json", {"status": status, "time": time.time(), "pid": os.getpid(), **details})

    def add_provenance(self, **facts: Any) -> None:
        """Record one start of this run: what was asked, by which code, on what machine."""
        sessions = self.read_json("provenance.json").get("sessions", [])
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


def versions() -> dict[str, str]:
    """The versions that decide a run's arithmetic."""
    packages = ("cifargan", "torch", "torchvision", "torchmetrics", "torch-fidelity", "hydra-core", "numpy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def git_state(directory: Path) -> dict[str, Any] | None:
    """The commit of the checkout around `directory` and whether it was changed; None outside of one."""

    def git(*arguments: str) -> str:
        # Without the optional lock, which a commit made meanwhile would stumble over.
        command = ["git", "--no-optional-locks", "-C", str(directory), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def device_name(device: torch.device) -> str:
    """A device as its maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
