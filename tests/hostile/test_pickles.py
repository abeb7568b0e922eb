"""Files of tensors whose pickles ask for what no file of tensors needs."""

import contextlib
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cifargan.errors import UserError
from cifargan.evaluation.extractors.weights import read_state_dict
from cifargan.pickles import load_tensors
from cifargan.runs.checkpoint import load
from cifargan.runs.directory import find_run

Within = Callable[[int], contextlib.AbstractContextManager[None]]
START, END = b"\x80\x02", b"."
DOUBLINGS = 45  # of which each takes twice as long as the one before, and 25 take a second


def shared_tuples(*, noted: bytes = b"q\x01") -> bytes:
    """A dict with one key: a tuple that holds a tuple twice, that holds a tuple twice, ..."""
    key = b"K\x01\x85" + noted
    for _ in range(DOUBLINGS):
        key += b"h\x01\x86" + noted
    return START + b"}" + key + b"K\x01s" + END


def shared_lists() -> bytes:
    """A list that holds a list twice, that holds a list twice, ..., under a name."""
    value = b"]q\x01"
    for _ in range(DOUBLINGS):
        value += b"]q\x02(h\x01h\x01eq\x01"
    return START + b"}X\x06\x00\x00\x00format" + value + b"s" + END


def called(name: str, *arguments: bytes) -> bytes:
    return b"c" + name.replace(".", "\n", 1).encode() + b"\n(" + b"".join(arguments) + b"tR"


def doubled_text() -> bytes:
    """Bytes as hexadecimal digits of hexadecimal digits of ..."""
    value = b"X\x01\x00\x00\x00aX\x06\x00\x00\x00latin1"
    value = called("_codecs.encode", value)
    for _ in range(DOUBLINGS):
        value = called("_codecs.encode", value, b"X\x03\x00\x00\x00hex")
    return START + value + END


PICKLES = {
    "tuples of tuples": shared_tuples(),
    "tuples noted down twice": shared_tuples(noted=b"q\x00q\x01"),
    "tuples noted down later": shared_tuples(noted=b"\x80\x02q\x01"),
    "terabytes of nothing": START + called("builtins.bytearray", b"\x8a\x06\x00\x00\x00\x00\x00\x01") + END,
    "a text that doubles": doubled_text(),
    "a tensor of terabytes": START + called("torch.FloatTensor", b"\x8a\x06\x00\x00\x00\x00\x00\x01") + END,
    "a command": START + called("posix.system", b"X\x01\x00\x00\x00:") + END,
    "a list of itself": START + b"]q\x01h\x01a" + END,
    "lists of lists": shared_lists(),
    "deep": START + b"}X\x06\x00\x00\x00format" + b"]" * 20_000 + b"a" * 19_999 + b"s" + END,
}


def zipped(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": data, "version": b"3\n", "byteorder": b"little"}.items():
            archive.writestr(f"a/{name}", content)
    return path


def old_format(path: Path, data: bytes) -> Path:
    file = io.BytesIO()
    torch.save({}, file, _use_new_zipfile_serialization=False)
    first = file.getvalue()
    # The number, the version and the machine; then the object, then the names of its storages.
    stream = io.BytesIO(first)
    for _ in range(3):
        pickle.load(stream)
    path.write_bytes(first[: stream.tell()] + data + pickle.dumps([], 2))
    return path


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("write", [zipped, old_format])
def test_pickles_that_ask_for_too_much(
    tmp_path: Path, within: Within, write: Callable[[Path, bytes], Path], name: str
) -> None:
    path = write(tmp_path / "sent.pt", PICKLES[name])
    with within(128), pytest.raises(UserError) as error:
        load(path)
    assert str(error.value).isprintable()
    with within(128), pytest.raises(UserError, match=r"is damaged, or holds more than tensors|holds no state dict"):
        read_state_dict(path)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
def test_what_ours_hold_is_read(tensors_file: Callable[..., Path], old: bool) -> None:
    shared = torch.arange(3)
    content = {
        "tensors": [
            torch.zeros(2, 3, dtype=kind) for kind in (torch.float32, torch.bfloat16, torch.int64, torch.uint8)
        ],
        "views": (shared, shared[1:], shared),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "rest": [None, True, 2**70, 1.5, "é", (), {}, (1, (2, 3)), [(0.5, 0.9)] * 3],
    }
    found = load_tensors(tensors_file(content, old=old))
    assert str(found) == str(content)


def test_a_file_that_is_two_files(tmp_path: Path, payload: object) -> None:
    """A pickle in front, which torch would read, and a zip behind it, which others would see."""
    good = zipped(tmp_path / "good.zip", pickle.dumps({}, 2)).read_bytes()
    path = tmp_path / "both.pt"
    path.write_bytes(old_format(tmp_path / "old.pt", PICKLES["tuples of tuples"]).read_bytes() + good)
    with pytest.raises(ValueError, match="tuples of the same tuples"):
        load_tensors(path)


def test_a_zip_with_two_pickles_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "sent.pt"
    for names in (("a/data.pkl", "a/DATA.pkl"), ("a/DATA.PKL", "a/version")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(names[0], PICKLES["tuples of tuples"])
            archive.writestr(names[1], pickle.dumps({}, 2))
            archive.writestr("a/byteorder", b"little")
        with pytest.raises((ValueError, RuntimeError)):
            load_tensors(path)


def test_a_tar_is_not_unpacked(tmp_path: Path) -> None:
    """torch once saved tars, and unpacks them."""
    path = tmp_path / "inside" / "sent.pt"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for name in ("../evil", str(tmp_path / "evil"), "storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    with pytest.raises(UserError, match="is damaged or no checkpoint"):
        load(path)
    with pytest.raises(UserError, match="is damaged, or holds more than tensors"):
        read_state_dict(path)
    assert [found.name for found in tmp_path.rglob("*")] == ["inside", "sent.pt"]


def test_provenance_that_nests_without_end(tmp_path: Path) -> None:
    for name, content in {"a": '{"sessions": [{"started": "2026"}]}', "b": "[" * 100_000}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "provenance.json").write_text(content)
    assert find_run(None, tmp_path).path.name == "a"
