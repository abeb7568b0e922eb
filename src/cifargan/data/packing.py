"""A folder of images as one zip, the same bytes wherever and whenever it is packed."""

import stat
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch

from cifargan.data.decode import decode_files
from cifargan.data.sources import ImageSet
from cifargan.data.storage import SPLIT_NAMES, Storage, is_image, open_storage
from cifargan.errors import UserError
from cifargan.files import write_atomically
from cifargan.untrusted import readable

EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say; when a file was written is nobody's business
CHECK_SIZE = 32  # height and width that fingerprints are of


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What went into a zip.

    Attributes:
        counts: split ("" where there is none) and class -> images.
        fingerprints: split -> what `data=folder` will call its images at 32x32, see `ImageSet.fingerprint`.
        ignored: files that are no images or lie in no class folder.
        broken: images that cannot be decoded and were left out.
    """

    counts: dict[tuple[str, str], int]
    fingerprints: dict[str, str]
    ignored: int
    broken: tuple[str, ...]


def pack(source: Path, out: Path, *, force: bool = False, skip_broken: bool = False) -> Packed:
    """Pack the images of a folder (or of another zip) into a zip that `data=folder` reads as it reads the folder.

    The files go in as they are: their formats are compressed already, and decoding them again gives the same pixels.

    Args:
        source: a folder of class folders, or of `train` and `test` folders of those.
        out: the zip; it appears whole or not at all.
        force: whether an existing file is replaced.
        skip_broken: whether images that cannot be decoded are left out; else they stop it.

    Raises:
        UserError: there is nothing to pack, something cannot be read, or the zip cannot be written.
    """
    if out.exists() and not force:
        raise UserError(f"{readable(str(out))} is there already: give another name, or --force to replace it")
    with open_storage(source, setting="DIR") as storage:
        try:
            return _pack(storage, out, skip_broken=skip_broken)
        except OSError as error:
            place = readable(str(error.filename or source))
            raise UserError(f"cannot read {place}: {error.strerror or error}") from error


def _pack(storage: Storage, out: Path, *, skip_broken: bool) -> Packed:
    top = storage.folders("")
    # As `data=folder` sees it: only folders that are all named like splits are splits.
    splits = top if top and SPLIT_NAMES.issuperset(top) else [""]
    everything = [entry.name for entry in storage.files("")]
    counts: dict[tuple[str, str], int] = {}
    fingerprints: dict[str, str] = {}
    packed: list[str] = []
    broken: list[str] = []
    for split in splits:
        depth = 1 if split else 0
        inside = [entry.name for entry in storage.files(split)]
        names = [name for name in inside if is_image(name) and name.count("/") > depth]
        good, images = _checked(storage, names, broken, label=split or storage.path.name, skip_broken=skip_broken)
        classes = storage.folders(split)
        owners = [name.split("/")[depth] for name in good]
        for name in classes:
            counts[split, name] = owners.count(name)
        if good:
            labels = torch.tensor([classes.index(owner) for owner in owners], dtype=torch.int64)
            fingerprints[split] = ImageSet(
                images=images, labels=labels, classes=tuple(classes), name="", splits=(split,), flip=True
            ).fingerprint
        packed += good
    if not packed:
        raise UserError(
            f"{readable(str(storage.path))} holds no PNG, JPEG or WebP file in class folders (DIR/cat/1.png, or "
            "DIR/train/cat/1.png): there is nothing to pack"
        )
    for name in packed:
        if not _encodable(name):
            raise UserError(f"{readable(name)}: a zip cannot hold that name: rename the file")
    write_atomically(out, _writer(storage, packed))
    with open_storage(out) as written:
        if [entry.name for entry in written.files("")] != packed:
            out.unlink()
            raise UserError(
                f"{readable(str(storage.path))} has one class folder with folders in it, which a zip cannot tell from "
                "a wrapping: put it into a folder called train"
            )
    ignored = len(everything) - len(packed) - len(broken)
    return Packed(counts=counts, fingerprints=fingerprints, ignored=ignored, broken=tuple(broken))


def _checked(
    storage: Storage, names: Sequence[str], broken: list[str], *, label: str, skip_broken: bool
) -> tuple[list[str], torch.Tensor]:
    """Those of the files that can be decoded, and their images at `CHECK_SIZE`; the others are added to `broken`."""

    def note(name: str, reason: str) -> None:
        where = readable(str(storage.path / name))
        if not skip_broken:
            raise UserError(f"{where} is broken ({readable(reason)}); mend or remove it, or give --skip-broken")
        broken.append(name)

    images, good = decode_files(storage, names, image_size=CHECK_SIZE, label=readable(label), on_broken=note)
    return [name for name, fine in zip(names, good, strict=True) if fine], torch.from_numpy(images)


def _encodable(name: str) -> bool:
    # A name of undecodable bytes, or one that a zip would understand as a path.
    return "\\" not in name and "\0" not in name and not any(0xD800 <= ord(letter) < 0xE000 for letter in name)


def _writer(storage: Storage, names: Sequence[str]) -> Callable[[IO[bytes]], None]:
    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as target:
            for name in names:
                info = zipfile.ZipInfo(name, date_time=EPOCH)
                info.create_system = 3  # Unix, also where it is packed on another system
                info.external_attr = (stat.S_IFREG | 0o644) << 16
                target.writestr(info, storage.read(name))

    return write
