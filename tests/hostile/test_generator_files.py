"""Exported generators from strangers."""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from cifargan.runs.generator_file import as_bytes, read_generator_file

Within = Callable[[int], AbstractContextManager[None]]
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="session")
def honest(invoke: Callable[..., CompletedProcess[str]], trained: Path) -> Path:
    """A file as it was exported; not to be changed."""
    out = trained.parent / "honest.safetensors"
    ran = invoke(trained.parent, "export", "run", "--format", "safetensors", "--device", "cpu", "--out", str(out))
    assert ran.returncode == 0, ran.stderr
    return out


@pytest.fixture
def sent(honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], Path]:
    """A function that writes the file with another card, on a machine with a secret in its environment."""
    monkeypatch.setenv("CIFARGAN_SECRET", "no-stranger-may-learn-this")

    def write(change: Change) -> Path:
        card = json.loads((honest.with_name(f"{honest.name}.json")).read_text())
        change(card)
        path = tmp_path / "sent.safetensors"
        path.write_bytes(as_bytes(read_generator_file(honest).tensors, card))
        return path

    return write


def _set(path: str, value: Any) -> Change:
    def change(card: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for key in parents:
            card = card[key]
        card[last] = value

    return change


LIES: dict[str, tuple[Change, str]] = {
    "target": (_set("config.model.generator._target_", "os.system"), "_target_: no such setting"),
    "dotted name": (_set("config.model.generator.name", "os.system"), "no such name"),
    "environment": (_set("config.model.generator.base_channels", "${oc.env:CIFARGAN_SECRET}"), "is not looked up"),
    "huge network": (_set("config.model.generator.base_channels", 4000), "is of another generator"),
    "absurd network": (_set("config.model.generator.base_channels", 10**30), "damaged|expected|another generator"),
    "other network": (_set("config.model.generator.name", "biggan"), "no such setting"),
    "huge images": (_set("config.data.image_size", 2**20), "does not say what its networks are"),
    "traversal": (_set("classes", [f"../../{i}" for i in range(10)]), "holds a slash"),
    "terminal": (_set("classes", [f"\x1b]0;{i}\x07" for i in range(10)]), "do not print"),
    "fewer classes": (_set("classes", ["a"]), "is of another generator"),
    "step": (_set("step", "1"), "does not say what its networks are"),
    "kind": (_set("weights", "\x1b[31m"), "is damaged, or no generator of ours"),
    "switches": (_set("switches", 3), "is damaged, or no generator of ours"),
    "checksum": (_set("weights_sha256", "0" * 64), "its checksum does not fit"),
    "format": (_set("format", 99), "has format 99; this version reads format 1"),
    "no config": (lambda card: card.pop("config"), "does not say what its networks are"),
    "long": (_set("more", "x" * 2_000_000), "is damaged, or no generator of ours"),
}


@pytest.mark.parametrize("lie", [*LIES])
def test_what_a_card_says(
    refusal: Callable[..., str], sent: Callable[[Change], Path], tmp_path: Path, within: Within, lie: str
) -> None:
    change, message = LIES[lie]
    path = sent(change)
    before = sorted(tmp_path.rglob("*"))
    with within(256):
        line = refusal("sample", str(path), "--device", "cpu", "--per-class", "1")
    assert any(part in line for part in message.split("|")), line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "command_line", [("train", "init={}", "evaluator=none"), ("evaluate", "{}", "--device", "cpu")]
)
def test_other_commands_look_nothing_up_either(
    refusal: Callable[..., str], sent: Callable[[Change], Path], command_line: tuple[str, ...]
) -> None:
    path = sent(_set("config.model.generator.base_channels", "${oc.env:CIFARGAN_SECRET}"))
    assert "is not looked up" in refusal(*(part.format(path) for part in command_line))


def _header_of(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "cut in the header": lambda content: content[:100],
    "one byte less": lambda content: content[:-1],
    "one byte more": lambda content: content + b"\0",
    "a long header": lambda content: (2**62).to_bytes(8, "little") + content[8:],
    "a changed weight": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "nested": lambda content: (200_000).to_bytes(8, "little") + b"[" * 200_000,
    "no card": lambda content: (2).to_bytes(8, "little") + b"{}",
    "a pickle": lambda content: b"\x80\x04c__builtin__\nprint\n.",
}


@pytest.mark.parametrize("damage", [*DAMAGE])
def test_damaged_files(refusal: Callable[..., str], honest: Path, tmp_path: Path, within: Within, damage: str) -> None:
    path = tmp_path / "sent.safetensors"
    path.write_bytes(DAMAGE[damage](honest.read_bytes()))
    with within(64):
        line = refusal("sample", str(path), "--device", "cpu")
    assert "damaged" in line or "holds no card of cifargan" in line


def test_a_header_that_lies_of_shapes(refusal: Callable[..., str], honest: Path, tmp_path: Path) -> None:
    content = honest.read_bytes()
    end = _header_of(content)
    header = json.loads(content[8:end])
    name = next(key for key in header if key != "__metadata__" and len(header[key]["shape"]) == 4)
    header[name]["shape"][0] = 10**12
    text = json.dumps(header).encode()
    path = tmp_path / "sent.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
    assert "is damaged" in refusal("sample", str(path), "--device", "cpu")


def test_weights_of_another_type(refusal: Callable[..., str], honest: Path, tmp_path: Path) -> None:
    card = json.loads((honest.with_name(f"{honest.name}.json")).read_text())
    tensors = {key: tensor.to(torch.float16) for key, tensor in read_generator_file(honest).tensors.items()}
    path = tmp_path / "sent.safetensors"
    path.write_bytes(as_bytes(tensors, card))
    assert "is damaged" in refusal("sample", str(path), "--device", "cpu")


def test_what_is_no_file(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert "there is no file" in refusal("sample", "nowhere.safetensors", "--device", "cpu")
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "there is no file" in refusal("sample", "pipe.safetensors", "--device", "cpu")


def test_an_honest_file_is_read(command: Callable[..., CompletedProcess[str]], sent: Callable[[Change], Path]) -> None:
    ran = command("sample", str(sent(lambda card: None)), "--device", "cpu", "--per-class", "1")
    assert ran.returncode == 0, ran.stderr
