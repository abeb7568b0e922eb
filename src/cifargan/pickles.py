"""Tensors from files that somebody was sent, and what a pickle of them may say.

`torch.load(..., weights_only=True)` runs no code. But it calls what is on its list with whatever the file gives:
`bytearray` with a length of terabytes, a codec that doubles a text forty times over. And it uses tuples as keys, where
sixty that each hold the one before twice take years to hash. So a file is looked through first, and may name only what
our own name. torch is imported when a file is read.
"""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|torch b?float\d+"
)
MAX_SHARED_TUPLES = 16  # times that tuples are referred to again: ours never are, and each doubles what hashing takes
# What pushes a value that is no tuple: a pickler notes a value down as soon as it is there.
NO_TUPLES = {"EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "BINUNICODE", "SHORT_BINSTRING", "GLOBAL", "REDUCE", "LONG1"}
MAX_PARTS = 200_000  # values in a file of tensors, each counted as often as it is referred to
ZIP = b"PK\x03\x04"
PICKLES_OF_OLD = 5  # of a file from before torch saved zips: a number, a version, the machine, the object, its storages


def load_tensors(path: Path) -> Any:
    """Read a file of `torch.save` to the CPU without running code, and without believing it about sizes.

    Args:
        path: the file.

    Returns:
        What it holds: tensors and builtins.

    Raises:
        Exception: whatever torch raises on a damaged file, or on one that holds anything else; ValueError for one
            that would unpack to more than itself.
    """
    import torch

    source = _looked_through(path)
    with warnings.catch_warnings(action="ignore"):
        content = torch.load(source, map_location="cpu", weights_only=True)
    for tensor in _tensors(content):
        # A view can repeat one stored number a billion times, and the first copy of it would have them all.
        plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
        if not plain or tensor.device.type != "cpu":
            raise ValueError("it holds a tensor that is no plain one")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError("it holds a tensor that is larger than what is stored of it")
    return content


def _tensors(content: Any) -> Iterator[Any]:
    """Every tensor in nested containers.

    Raises:
        ValueError: there is no end to them. Lists of lists of one list are small, until somebody goes through them.
    """
    import torch

    pending, parts = [content], 0
    while pending:
        value = pending.pop()
        parts += 1
        if parts > MAX_PARTS:
            raise ValueError("it is more than any of ours holds")
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            pending += value


def _looked_through(path: Path) -> Path | io.BytesIO:
    """What torch may read of a file: itself, or a copy of it.

    Raises:
        ValueError: it names more than tensors and builtins, would take endless time to load, or would unpack to more than
            itself. Other damage may raise anything.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP)) == ZIP:
            return _copy_of_zip(file, path.stat().st_size)
        file.seek(0)
        for _ in range(PICKLES_OF_OLD):
            _look_through(file)
    return path


def _copy_of_zip(file: IO[bytes], size: int) -> io.BytesIO:
    """A new zip of the parts of one, which are looked through.

    torch never sees the file itself: two readers of zips can see two files in one, and torch's unpacks what is compressed
    a thousandfold before it looks at anything.
    """
    copy = io.BytesIO()
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(copy, "w") as target:
        parts = source.infolist()
        # torch.save stores as it is.
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(p.file_size for p in parts) > size:
            raise ValueError("its parts are larger than the file")
        if len({part.filename for part in parts}) < len(parts):
            raise ValueError("two of its parts have one name")
        for part in parts:
            content = source.read(part)
            if part.filename.endswith("data.pkl"):
                _look_through(io.BytesIO(content))
            target.writestr(zipfile.ZipInfo(part.filename), content)
    copy.seek(0)
    return copy


def _look_through(file: IO[bytes]) -> None:
    """Go through one pickle, up to its end.

    Raises:
        ValueError: it is not plain.
    """
    no_tuples: set[object] = set()  # the places in the memo where there can be none
    shared, before = 0, ""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL" and not NAMES.fullmatch(str(argument)):
            raise ValueError("it names more than tensors are made of")
        if opcode.name.endswith("PUT"):
            (no_tuples.add if before in NO_TUPLES else no_tuples.discard)(argument)
        elif opcode.name.endswith("GET"):
            shared += argument not in no_tuples
            if shared > MAX_SHARED_TUPLES:
                raise ValueError("its tuples are tuples of the same tuples")
        before = opcode.name
