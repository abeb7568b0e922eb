"""Changes to good inputs, each the function of a seed."""

# ruff: noqa: S311 - the cases are to be had again
import copy
import io
import random
import zipfile
from collections.abc import Sequence
from typing import Any

NASTY: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), "", " ", "???", "null", "auto"),
    *("${oc.env:HOME}", "${hydra:runtime.cwd}", "${name}", "${a", "\\${x}", "../../x", "/etc/passwd", "os.system"),
    *("\x1b[31m", "a\nb", "\ud800", "x" * 5000, "<script>", "'", '"', "=", "é" * 40, [], {}, [[]], {"a": {}}, [1, "a"]),
    *({"_target_": "os.system"}, {"name": None}, [None], b"bytes"),
)


def damage(data: bytes, seed: int) -> bytes:
    """One change to some bytes: flipped, cut, repeated, spliced, or a length that lies."""
    rng = random.Random(seed)
    at, to = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    near = min(to, at + rng.randrange(1, 64))
    lie = rng.choice((0, 1, 2**15, 2**31 - 1, 2**32 - 1)).to_bytes(4, rng.choice(("little", "big")))
    match rng.randrange(8):
        case 0 | 1:
            return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        case 2:
            return data[:at] + bytes(byte ^ (1 << rng.randrange(8)) for byte in data[at:near]) + data[near:]
        case 3:
            return data[:at]
        case 4:
            return data[:at] + data[near:]
        case 5:
            return data[:at] + data[at:near] * rng.randrange(2, 9) + data[near:]
        case 6:
            return data[:at] + data[to : to + 64] + data[at + 64 :]
        case _:
            return data[:at] + lie + data[at + 4 :]


def disturb(tree: Any, seed: int) -> None:
    """One change to nested dicts and lists, in place: a value, a name, something missing or something too much."""
    rng = random.Random(seed)
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        deeper = [key for key in keys if isinstance(node[key], dict | list) and len(node[key])]
        if not deeper or rng.random() < 0.25:
            break
        node = node[rng.choice(deeper)]
    nasty = copy.deepcopy(rng.choice(NASTY))
    if not keys:
        return
    key = rng.choice(keys)
    match rng.randrange(5):
        case 0 | 1 | 2:
            node[key] = nasty
        case 3:
            del node[key]
        case _ if isinstance(node, dict):
            name = rng.choice((repr(nasty), f"{key}x", str(key)[:-1], "_target_", "hydra", 3))
            node[name] = node[key]
        case _:
            node.append(nasty)


def repacked(data: bytes, seeds: Sequence[int]) -> bytes:
    """A zip whose members are damaged and whose checksums fit nevertheless."""
    with zipfile.ZipFile(io.BytesIO(data)) as good:
        contents = {name: good.read(name) for name in good.namelist()}
    for seed in seeds:
        name = list(contents)[seed % len(contents)]
        # Headers are what readers believe, and they are short.
        head = 128 if seed % 3 else len(contents[name])
        contents[name] = damage(contents[name][:head], seed) + contents[name][head:]
    return packed(contents)


def packed(contents: dict[str, bytes]) -> bytes:
    """A zip of these members, stored as they are."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return file.getvalue()
