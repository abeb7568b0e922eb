"""A generator by itself: its weights in a safetensors file, and in the file's header a card that says what they are.

The weights are plain: what spectral norm divides by is divided out. The card is JSON and holds settings as data. They
go through the same checks as those of a checkpoint, and a checksum over the weights shows what has changed since.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from cifargan.errors import UserError
from cifargan.runs.checkpoint import Description, describe
from cifargan.untrusted import readable, refusing, require_memory

SUFFIX = ".safetensors"
FORMAT = 1
KEY = "cifargan"  # of the card in the header
MAX_CARD = 1_000_000  # characters
KINDS = ("ema", "raw")
DTYPES = (torch.float32, torch.int64)


@dataclass(frozen=True, kw_only=True)
class GeneratorFile:
    """What such a file holds, checked as what a stranger may have written.

    Attributes:
        about: its settings, classes, size of images and training step.
        kind: `ema` or `raw`, the weights that were exported.
        switches: the form of the network that drew the run's images, by name; unknown names are ignored.
        tensors: the state dict, without spectral norm.
    """

    about: Description
    kind: str
    switches: dict[str, Any]
    tensors: dict[str, Tensor]


def is_generator_file(path: str | Path) -> bool:
    """Whether a path is that of a generator by itself, by its name."""
    return Path(path).suffix == SUFFIX


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of tensors on the CPU, whatever their order in a file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def as_bytes(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> bytes:
    """The content of a file with these tensors (on the CPU) and this card."""
    content: bytes = save({key: tensor.contiguous() for key, tensor in tensors.items()}, {KEY: json.dumps(card)})
    return content


def read_generator_file(path: Path) -> GeneratorFile:
    """Read such a file without believing it.

    Raises:
        UserError: there is none, it is damaged, of a format that this version does not know, or none of ours.
    """
    where = readable(str(path))
    if not path.is_file():
        raise UserError(f"there is no file {where}: give a run, or a generator from cifargan export")
    require_memory(path.stat().st_size, where)
    with refusing(f"{where} is damaged, or no generator of ours: export it again"):
        with safe_open(path, framework="pt", device="cpu") as file:
            card = _card(file.metadata(), where)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        if not all(tensor.dtype in DTYPES for tensor in tensors.values()):
            raise TypeError("weights are float32, counters int64")
        if checksum(tensors) != card["weights_sha256"]:
            raise UserError(f"{where} is damaged: its checksum does not fit its weights; fetch or export it again")
        if card["weights"] not in KINDS:
            raise ValueError("no kind of weights")
        return GeneratorFile(
            about=describe(card, path),
            kind=card["weights"],
            switches=dict(card["switches"]),
            tensors=tensors,
        )


def _card(header: Mapping[str, str] | None, where: str) -> dict[str, Any]:
    """The card in a header.

    Raises:
        UserError: there is none, or one of another format.
        Exception: it is damaged.
    """
    text = (header or {}).get(KEY)
    if text is None:
        raise UserError(f"{where} holds no card of cifargan: it was not written by cifargan export")
    if len(text) > MAX_CARD:
        raise ValueError("no card of ours is that long")
    card = json.loads(text)
    if not isinstance(card, dict):
        raise TypeError("a card is an object")
    if type(card.get("format")) is not int or card["format"] != FORMAT:
        raise UserError(
            f"{where} has format {readable(str(card.get('format')), limit=40)}; this version reads format {FORMAT}"
        )
    return card
