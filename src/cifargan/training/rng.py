"""The random number generators that training draws from: seeding, saving, restoring."""

import os
import random

import numpy as np
import torch
from torch import Tensor


def seed_everything(seed: int) -> None:
    """Seed the host's and every device's default generator."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries below draw from it
    torch.manual_seed(seed)


def be_deterministic(enabled: bool) -> None:
    """Switch torch to algorithms that give the same bits every time, or back."""
    if enabled:
        # cuBLAS reads this when its first handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(enabled)
    torch.backends.cudnn.benchmark = not enabled


def use_tf32(enabled: bool) -> None:
    """Let float32 convolutions on a GPU round their factors to TF32, or not. Products of matrices never do."""
    # Not `cudnn.conv.fp32_precision` alone: export and compilation refuse to read flags of cuDNN that differ.
    torch.backends.cudnn.allow_tf32 = enabled


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the generators that the training step uses, as uint8 CPU tensors."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_rng(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore `rng_state`. A state of a device that is not here is left alone."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
