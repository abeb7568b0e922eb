"""Read image files from a folder or from a zip through one interface."""

import lzma
import os
import threading
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from cifargan.errors import UserError
from cifargan.untrusted import readable, refusing

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SPLIT_NAMES = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})
MAX_FILE_BYTES = 64 * 2**20  # a zip can hold a file a thousand times its own size, a disk a file that is all holes
MAX_WRAPPERS = 8  # nested folders of a zip that hold one folder and nothing else
MAX_DEPTH = MAX_WRAPPERS + 2  # levels of a zip whose folders matter


class BrokenFileError(Exception):
    """A file's bytes are damaged, encrypted or too many for an image."""


class Entry(NamedTuple):
    """A file and what changes when it is rewritten."""

    name: str  # relative to the storage, parts joined by "/"
    size: int  # bytes
    stamp: int  # modification time in ns, or the CRC-32 of a zip's member


class Storage(ABC):
    """A tree of files, listed once when it is opened. Hidden names and `__MACOSX` are left out.

    Args:
        path: The folder or zip.
        files: Every file in it.
        folders: The name of every folder in it, at least those of the first two levels.
    """

    def __init__(self, path: Path, files: Iterable[Entry], folders: Iterable[str]) -> None:
        self.path = path
        # A plain string would sort `cat-big/` before `cat/`, and labels would not follow the order of class names.
        self._files = sorted(files, key=lambda entry: entry.name.split("/"))
        self._folders = set(folders)

    def folders(self, under: str) -> list[str]:
        """List the names of the sub-folders of the folder `under` ("" is the top), sorted."""
        prefix = f"{under}/" if under else ""
        inside = (name[len(prefix) :] for name in self._folders if name.startswith(prefix))
        return sorted(name for name in inside if "/" not in name)

    def files(self, under: str) -> list[Entry]:
        """List every file at any depth below the folder `under`, sorted folder by folder."""
        prefix = f"{under}/" if under else ""
        return [entry for entry in self._files if entry.name.startswith(prefix)]

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Read a file; several threads may do so at once.

        Raises:
            BrokenFileError: The stored bytes are damaged, encrypted or more than `MAX_FILE_BYTES`.
            OSError: The disk or the network failed, which says nothing about the image.
        """

    @abstractmethod
    def close(self) -> None:
        """Close any open file."""


class Directory(Storage):
    """A folder on disk. Devices and pipes are left out.

    Links to folders are followed on the top two levels, where people keep splits and classes, and not below, where one
    could lead round in a circle.
    """

    def __init__(self, path: Path) -> None:
        files: list[Entry] = []
        folders: list[str] = []
        pending = [""]
        while pending:
            prefix = pending.pop()
            with os.scandir(path / prefix) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if not _visible(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=prefix.count("/") < 2):
                        folders.append(name)
                        pending.append(f"{name}/")
                    elif entry.is_file():
                        stat = entry.stat()
                        files.append(Entry(name, stat.st_size, stat.st_mtime_ns))
        super().__init__(path, files, folders)

    def read(self, name: str) -> bytes:
        """Read a file."""
        with (self.path / name).open("rb") as file:
            return _no_larger(file.read(MAX_FILE_BYTES + 1), "is")

    def close(self) -> None:
        """Do nothing: no file stays open."""


class Zip(Storage):
    """A zip, read member by member without being unpacked.

    A folder that wraps all others is removed from the names, unless it is named like a split.
    """

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        self._lock = threading.Lock()
        members = {
            info.filename: info
            for info in self._zip.infolist()
            # An absolute path begins with an empty part, and `..` with a dot.
            if all(part and _visible(part) for part in info.filename.rstrip("/").split("/"))
        }
        self._base = base = wrapper(members)
        inside = {name[len(base) :]: info for name, info in members.items() if name.startswith(base)}
        files = [Entry(name, info.file_size, info.CRC) for name, info in inside.items() if not info.is_dir()]
        folders: set[str] = set()
        for name in inside:
            parents = name.split("/", MAX_DEPTH)[:-1]
            folders.update("/".join(parents[:depth]) for depth in range(1, len(parents) + 1))
        super().__init__(path, files, folders)

    def read(self, name: str) -> bytes:
        """Unpack one member into memory."""
        try:
            with self._lock, self._zip.open(self._base + name) as member:
                data = member.read(MAX_FILE_BYTES + 1)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError) as error:
            raise BrokenFileError(f"cannot be unpacked: {error}") from error
        return _no_larger(data, "unpacks to")

    def close(self) -> None:
        """Close the zip."""
        self._zip.close()


@contextmanager
def open_storage(root: Path, *, setting: str = "data.root") -> Iterator[Storage]:
    """Open the folder or zip that the user named in `setting`, and close it afterwards.

    Raises:
        UserError: There is nothing there, or something else; or something cannot be read, also within the `with` block.
    """
    shown = readable(str(root))
    try:
        if root.is_dir():
            storage: Storage = Directory(root)
        elif zipfile.is_zipfile(root):
            with refusing(f"{setting}: {shown} is a damaged zip: create or download it again"):
                storage = Zip(root)
        elif root.exists():
            raise UserError(f"{setting}: {shown} is a file, but not a zip; give a folder with one sub-folder per class")
        else:
            raise UserError(f"{setting}: there is no folder or zip at {shown}")
        with closing(storage):
            yield storage
    except OSError as error:
        place = readable(str(error.filename or root))
        raise UserError(f"{setting}: cannot read {place}: {error.strerror or error}") from error


def is_image(name: str) -> bool:
    """Whether a file's suffix is that of an image format that is read."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def wrapper(names: Iterable[str]) -> str:
    """The folders of a zip that wrap all others, such as `pictures/`; empty where there are none."""
    base = ""
    while base.count("/") < MAX_WRAPPERS:
        inside = [name[len(base) :].split("/", 2) for name in names if name.startswith(base)]
        tops = {parts[0] for parts in inside if len(parts) > 1}
        has_folders = any(len(parts) == 3 for parts in inside)
        has_images = any(len(parts) < 3 and is_image(parts[-1]) for parts in inside)
        if len(tops) != 1 or tops <= SPLIT_NAMES or has_images or not has_folders:
            break
        base += f"{tops.pop()}/"
    return base


def _no_larger(data: bytes, verb: str) -> bytes:
    if len(data) > MAX_FILE_BYTES:
        raise BrokenFileError(f"{verb} more than {MAX_FILE_BYTES // 2**20} MiB")
    return data


def _visible(part: str) -> bool:
    return not part.startswith(".") and part != "__MACOSX"
