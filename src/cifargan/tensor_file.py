"""Safetensors files with a JSON description and a checksum over both.

Checkpoints, exported generators and cached features are such files. They can hold no code: reading one makes tensors,
texts and numbers that are no larger than the file. One file, and not a pair, because renaming one file is atomic.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from cifargan.errors import UserError
from cifargan.untrusted import readable, require_memory

SUFFIX = ".safetensors"
DESCRIPTION = "cifargan"  # the key of the JSON text in the header's metadata
CHECKSUM = "sha256"  # the key in that JSON; one text holds all, because the order of several would be random
MAX_DESCRIPTION = 2**24  # characters; a BigGAN's checkpoint has some hundred thousand


class DamagedError(UserError):
    """A file's bytes are not those that were written, or never were a file of cifargan."""


def is_tensor_file(path: str | Path) -> bool:
    """Whether a path names a file of tensors, and not a run."""
    return Path(path).suffix == SUFFIX


def to_bytes(tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> bytes:
    """The content of a file.

    Args:
        tensors: on any device, in any memory layout; the file holds them contiguous.
        description: plain values, as JSON knows them.
    """
    # Each in memory of its own: safetensors refuses channels_last tensors, and tensors that share memory.
    plain = {name: torch.empty(t.shape, dtype=t.dtype).copy_(t.detach()) for name, t in tensors.items()}
    text = json.dumps({CHECKSUM: checksum(plain, json.dumps(description)), **description})
    if len(text) > MAX_DESCRIPTION:
        raise ValueError(f"a description of {len(text)} characters could not be read again")
    return bytes(save(plain, {DESCRIPTION: text}))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an untrusted file to the CPU.

    Returns:
        Its tensors, contiguous, and its description.

    Raises:
        DamagedError: it is damaged, or was not written by `to_bytes`.
        UserError: there is no such file, or it needs too much memory.
    """
    where = readable(str(path))
    if not path.is_file():
        raise UserError(f"there is no file {where}")
    require_memory(path.stat().st_size, where)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {})[DESCRIPTION]
            if len(text) > MAX_DESCRIPTION:
                raise ValueError("no description of ours is that long")
            # Copies: the tensors of safe_open are views of the file, which may change.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no dict
        description = json.loads(text)
        intact = description.pop(CHECKSUM) == checksum(tensors, json.dumps(description))
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes can raise anything
        raise DamagedError(f"{where} is damaged or not a file of cifargan") from error
    if not intact:
        raise DamagedError(f"{where} is damaged: its checksum does not match its content")
    return tensors, description


def checksum(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 over a text and the names, types, shapes and values of contiguous CPU tensors, in the order of names."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
