"""Where a run's results come from: the code, the versions of packages, the device."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


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
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
