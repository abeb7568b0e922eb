"""Where image files lie: in a folder or in a zip, read alike.

This module and `decode` import no torch, because every decoding process imports them.
"""

import lzma
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from cifargan.errors import UserError
from cifargan.untrusted import readable, refusing

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})
MAX_MEMBER_BYTES = 64 * 2**20  # a zip can hold a file a thousand times its own size, a disk one that is all holes
MAX_WRAPPERS = 8  # folders that hold one folder and nothing else


class BrokenFileError(Exception):
    """The stored bytes are no longer those that were put in."""


class Entry(NamedTuple):
    """One file, and what tells that it was rewritten."""

    name: str  # relative to the storage, parts joined by "/"
    size: int  # bytes
    stamp: int  # modification time in ns, or the CRC-32 of a zip's member


class Storage(ABC):
    """A tree of files. Names that start with a dot are passed over, and so is `__MACOSX`."""

    path: Path

    @abstractmethod
    def folders(self, under: str) -> list[str]:
        """Name the sub-folders of the folder `under` ("" is the top), sorted."""

    @abstractmethod
    def files(self, under: str) -> list[Entry]:
        """List every file anywhere below the folder `under`, sorted folder by folder."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            BrokenFileError: What is stored is damaged, encrypted or larger than any image.
            OSError: The disk or the network failed, which says nothing about the image.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of any open file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Directory(Storage):
    """A folder on disk. Only files are read: no device, no pipe.

    A link to a folder is followed at the top two levels, where people keep their splits and classes, and not below,
    where one could lead round in a circle.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def folders(self, under: str) -> list[str]:
        """Name the sub-folders of the folder `under`, sorted."""
        with os.scandir(self.path / under) as entries:
            return sorted(entry.name for entry in entries if _visible(entry.name) and entry.is_dir())

    def files(self, under: str) -> list[Entry]:
        """List every file below the folder `under`, sorted folder by folder."""
        found: list[Entry] = []
        pending = [(self.path / under, f"{under}/" if under else "", True)]
        while pending:
            folder, prefix, follow = pending.pop()
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not _visible(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=follow):
                        pending.append((folder / entry.name, f"{prefix}{entry.name}/", False))
                    elif entry.is_file():
                        stat = entry.stat()
                        found.append(Entry(prefix + entry.name, stat.st_size, stat.st_mtime_ns))
        return sorted(found, key=_by_folder)

    def read(self, name: str) -> bytes:
        """Read a file."""
        with (self.path / name).open("rb") as file:
            return _no_larger(file.read(MAX_MEMBER_BYTES + 1), "is")

    def close(self) -> None:
        """Nothing is held open."""


class Zip(Storage):
    """A zip, read member by member without being unpacked.

    One folder that wraps all others is taken off, unless it is named like a split.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = zipfile.ZipFile(path)
        self._members = {
            info.filename: info
            for info in self._file.infolist()
            # An empty part begins an absolute path, which is nobody's class.
            if all(part and _visible(part) for part in info.filename.rstrip("/").split("/"))
        }
        self._base = ""
        while self._base.count("/") < MAX_WRAPPERS and self._is_wrapped():
            self._base += f"{self.folders('')[0]}/"

    def __reduce__(self) -> tuple[type["Zip"], tuple[Path]]:
        # An open file cannot be shared with another process: each opens its own.
        return Zip, (self.path,)

    def _is_wrapped(self) -> bool:
        top = self.folders("")
        return (
            len(top) == 1
            and top[0] not in SPLIT_NAMES
            and len(self.folders(top[0])) > 0
            and not any(is_image(entry.name) for entry in self.files("") if entry.name.count("/") < 2)
        )

    def folders(self, under: str) -> list[str]:
        """Name the sub-folders of the folder `under`, sorted."""
        prefix = self._base + (f"{under}/" if under else "")
        inside = (name[len(prefix) :] for name in self._members if name.startswith(prefix))
        return sorted({rest.split("/", 1)[0] for rest in inside if "/" in rest})

    def files(self, under: str) -> list[Entry]:
        """List every file below the folder `under`, sorted folder by folder."""
        prefix = self._base + (f"{under}/" if under else "")
        found = [
            Entry(name[len(self._base) :], info.file_size, info.CRC)
            for name, info in self._members.items()
            if name.startswith(prefix) and not info.is_dir()
        ]
        return sorted(found, key=_by_folder)

    def read(self, name: str) -> bytes:
        """Unpack one member into memory."""
        try:
            with self._file.open(self._members[self._base + name]) as member:
                data = member.read(MAX_MEMBER_BYTES + 1)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError) as error:
            raise BrokenFileError(f"cannot be unpacked: {error}") from error
        return _no_larger(data, "unpacks to")

    def close(self) -> None:
        """Close the zip."""
        self._file.close()


def open_storage(root: Path, *, setting: str = "data.root") -> Storage:
    """Open the folder or zip that the user named, in `setting`.

    Raises:
        UserError: There is nothing there, or something else.
    """
    shown = readable(str(root))
    try:
        if root.is_dir():
            return Directory(root)
        if zipfile.is_zipfile(root):
            with refusing(f"{setting}: {shown} is a damaged zip: make or fetch it anew"):
                return Zip(root)
        if root.exists():
            raise UserError(f"{setting}: {shown} is a file that is no zip; give a folder with one sub-folder a class")
    except OSError as error:
        raise UserError(f"{setting}: cannot read {shown}: {error.strerror}") from error
    raise UserError(f"{setting}: there is no folder or zip at {shown}")


def is_image(name: str) -> bool:
    """Whether a file's name says that it holds an image of a kind that is read."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def _no_larger(data: bytes, verb: str) -> bytes:
    if len(data) > MAX_MEMBER_BYTES:
        raise BrokenFileError(f"{verb} more than {MAX_MEMBER_BYTES // 2**20} MiB")
    return data


def _visible(part: str) -> bool:
    return not part.startswith(".") and part != "__MACOSX"


def _by_folder(entry: Entry) -> list[str]:
    # A plain string would sort `cat-big/` before `cat/`, and classes would no longer be in the order of their names.
    return entry.name.split("/")
