"""Files of tensors: they keep every bit, run no code, and damage anywhere is one clear line."""

import contextlib
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from cifargan.errors import UserError
from cifargan.tensor_file import DESCRIPTION, DamagedError, read, to_bytes

Within = Callable[[int], contextlib.AbstractContextManager[None]]
SHARED = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
TENSORS = {
    "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "view": SHARED[1:3],
    "same memory": SHARED,
    "transposed": SHARED.T,
    "scalar": torch.tensor(3),
    "flag": torch.tensor([True, False]),
    "empty": torch.empty(0, 4),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "double": torch.tensor([float("nan"), float("-inf"), -0.0], dtype=torch.float64),
    "random state": torch.get_rng_state(),
}
ABOUT = {"best": float("inf"), "names": ["\x1b[2J", "ä"], "none": None, "rate": 0.1 + 0.2}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sent.safetensors"


def test_every_bit_is_kept(path: Path) -> None:
    path.write_bytes(to_bytes(TENSORS, ABOUT))
    tensors, about = read(path)
    assert about == ABOUT
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        before = TENSORS[name].contiguous()
        assert (tensor.dtype, tensor.shape) == (before.dtype, before.shape)
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), before.reshape(-1).view(torch.uint8))
    assert to_bytes(tensors, about) == path.read_bytes()


def test_what_was_read_is_not_the_file_itself(path: Path) -> None:
    path.write_bytes(to_bytes({"a": torch.ones(2000)}, {}))
    tensors, _ = read(path)
    path.write_bytes(b"")
    assert tensors["a"].sum() == 2000


def test_a_changed_bit_or_a_cut_anywhere_is_noticed(path: Path) -> None:
    content, chance = to_bytes(TENSORS, ABOUT), random.Random(0)
    header = 8 + int.from_bytes(content[:8], "little")
    unnoticed = 0
    for place in [*range(header), *chance.sample(range(header, len(content)), 200)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        found = None
        with contextlib.suppress(DamagedError):
            found = read(path)
        if found is not None:
            # Another spelling of the same JSON, such as a hex digit in upper case.
            assert to_bytes(*found) == content
            unnoticed += 1
    assert unnoticed < 10
    for size in (0, 1, 8, header // 2, header, header + 1, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(DamagedError, match="is damaged"):
            read(path)


def crafted(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def described(text: str) -> bytes:
    return bytes(save({"a": torch.ones(1)}, {DESCRIPTION: text}))


FOREIGN = {
    "zeros": bytes(10_000),
    "a web page": b"<!DOCTYPE html><html>not found</html>\n",
    "a zip": b"PK\x03\x04" + bytes(100),
    "a header as long as a disk": (2**62).to_bytes(8, "little") + b"{}",
    "a header of brackets": crafted(b"[" * 200_000),
    "no tensors": crafted({}),
    "a shape of terabytes": crafted({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4]}}, bytes(4)),
    "a shape that overflows": crafted(
        {"a": {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "tensors that share bytes": crafted(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, bytes(4)
    ),
    "somebody's model": bytes(save({"a": torch.ones(3)})),
    "a description that is no JSON": described("{"),
    "a description that is a list": described("[]"),
    "a description of brackets": described("[" * 100_000),
    "a description of digits": described("1" * 100_000),
    "an endless description": described(f'"{"x" * 2**24}"'),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_file_of_others_takes_no_memory(path: Path, within: Within, content: bytes) -> None:
    path.write_bytes(content)
    with within(64 + 3 * len(content) // 2**20), pytest.raises(DamagedError, match="is damaged") as error:
        read(path)
    assert str(error.value).isprintable()


def test_random_bytes(path: Path) -> None:
    chance = random.Random(0)
    for _ in range(200):
        path.write_bytes(chance.randrange(60).to_bytes(8, "little") + b'{"' + chance.randbytes(chance.randrange(60)))
        with pytest.raises(DamagedError, match="is damaged"):
            read(path)


def test_code_is_not_run(path: Path, payload: object) -> None:
    for content in (pickle.dumps(payload), crafted(b"{}", pickle.dumps(payload))):
        path.write_bytes(content)
        with pytest.raises(DamagedError, match="is damaged"):
            read(path)


def test_what_is_not_a_file(path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        read(path)
    os.mkfifo(path)
    with pytest.raises(UserError, match="there is no file"):
        read(path)


def test_more_than_this_machine_has(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(to_bytes({"a": torch.ones(1000)}, {}))
    monkeypatch.setattr("cifargan.untrusted._memory", lambda: 4000.0)
    with pytest.raises(UserError, match=r"needs .* of memory"):
        read(path)


def test_what_could_not_be_read_again_is_not_written() -> None:
    with pytest.raises(ValueError, match="could not be read"):
        to_bytes({}, {"long": "x" * 2**24})
