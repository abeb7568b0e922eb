"""Pack a folder of images into a zip; the same files give the same bytes everywhere."""

import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cifargan.data.decode import decode_files
from cifargan.data.folder import class_images, class_labels
from cifargan.data.storage import SPLIT_NAMES, Storage, open_storage, wrapper
from cifargan.errors import UserError
from cifargan.files import write_atomically
from cifargan.untrusted import readable

EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold; modification times are not packed


@dataclass(frozen=True, kw_only=True)
class Packed:
    """The content of a zip.

    Attributes:
        counts: split ("" if there are none) and class -> number of images.
        ignored: Number of files that are not images or not in a class folder.
        broken: The images that cannot be decoded and were left out.
    """

    counts: dict[tuple[str, str], int]
    ignored: int
    broken: tuple[str, ...]


def pack(source: Path, out: Path, *, force: bool = False, skip_broken: bool = False) -> Packed:
    """Pack the images of a folder (or of another zip) into a zip that `data=folder` reads like the folder.

    The files are stored unchanged, because their formats are compressed already. Each is decoded once as a check.

    Args:
        source: A folder of class folders, or of `train` and `test` folders of those.
        out: The zip. It is written whole or not at all.
        force: Whether an existing file is replaced.
        skip_broken: Whether images that cannot be decoded are left out; otherwise they are an error.

    Raises:
        UserError: There is nothing to pack, something cannot be read, or the zip cannot be written.
    """
    if out.exists() and not force:
        raise UserError(f"{readable(str(out))} exists: give another name, or --force to replace it")
    with open_storage(source, setting="DIR") as storage:
        return _pack(storage, out, skip_broken=skip_broken)


def _pack(storage: Storage, out: Path, *, skip_broken: bool) -> Packed:
    broken: list[str] = []

    def note(name: str, reason: str) -> None:
        if not skip_broken:
            where = readable(str(storage.path / name))
            raise UserError(f"{where} is broken ({readable(reason)}); repair or remove it, or give --skip-broken")
        broken.append(name)

    top = storage.folders("")
    # `data=folder` takes folders for splits only if all of them are named like splits.
    splits = top if top and SPLIT_NAMES.issuperset(top) else [""]
    counts: dict[tuple[str, str], int] = {}
    packed: list[str] = []
    for split in splits:
        classes = storage.folders(split)
        names = [entry.name for entry in class_images(storage.files(split), split)]
        label = readable(split or storage.path.name)
        _, good = decode_files(storage, names, image_size=1, label=label, on_broken=note)
        kept = [name for name, fine in zip(names, good, strict=True) if fine]
        labels = class_labels(kept, classes, split)
        counts |= {(split, name): labels.count(label) for label, name in enumerate(classes)}
        packed += kept
    if not packed:
        raise UserError(
            f"{readable(str(storage.path))} holds no PNG, JPEG or WebP file in class folders (DIR/cat/1.png, or "
            "DIR/train/cat/1.png): there is nothing to pack"
        )
    for name in packed:
        # Undecodable bytes, or a character that a zip takes for the end of the name or for a slash.
        if any(letter in "\\\0" or 0xD800 <= ord(letter) < 0xE000 for letter in name):
            raise UserError(f"{readable(name)}: a zip cannot hold that name: rename the file")
    if wrapper(packed):
        raise UserError(
            f"{readable(str(storage.path))} has a single class folder with folders in it, which looks like a wrapper "
            "in a zip: move it into a folder called train"
        )

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as target:
            for name in packed:
                info = zipfile.ZipInfo(name, date_time=EPOCH)
                info.create_system = 3  # Unix, whatever system packs it
                info.external_attr = (stat.S_IFREG | 0o644) << 16
                target.writestr(info, storage.read(name))

    write_atomically(out, write)
    ignored = len(storage.files("")) - len(packed) - len(broken)
    return Packed(counts=counts, ignored=ignored, broken=tuple(broken))
