"""The device that a run takes."""

import os
import re
from pathlib import Path

import torch

from cifargan.distributed import local_rank, world_size
from cifargan.errors import UserError

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # there on Linux where the driver is loaded


def select_device(name: str) -> torch.device:
    """The device that a name stands for, made torch's current one; `auto` takes CUDA, else MPS, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return _own_device(torch.device(kind)) if world_size() > 1 else torch.device(kind)
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"device={name}: no such device; choose from auto, cuda, cuda:N, mps, cpu")
    device = torch.device(name)
    if world_size() > 1:
        device = _own_device(device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UserError(f"device={name}: CUDA devices that torch sees here: {count}; choose device=auto or device=cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps: torch sees no MPS device here; choose device=auto or device=cpu")
    if device.type == "cuda" and device.index is not None:
        # A captured step, and what torch.compile makes, run on the current device, wherever their tensors lie.
        torch.cuda.set_device(device)
    return device


def unused_gpu() -> str | None:
    """Why torch sees none of the NVIDIA GPUs of this machine; None where it does, there are none, or they are hidden."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if torch.cuda.is_available() or hidden or not NVIDIA_DRIVER.exists():
        return None
    if torch.version.cuda is None:
        return "this torch is built without CUDA: install one with it (https://pytorch.org/get-started)"
    return (
        f"this torch is built for CUDA {torch.version.cuda}, and the driver does not suit it: install a newer driver, or a "
        "torch for an older CUDA"
    )


def _own_device(device: torch.device) -> torch.device:
    """The GPU of this process, where several share the work.

    Raises:
        UserError: they would share a device as well.
    """
    if device.type == "cpu":
        return device
    if device.type == "mps" or device.index is not None:
        raise UserError(f"device={device}: several processes need a device each; choose device=cuda or device=cpu")
    return torch.device("cuda", local_rank())
