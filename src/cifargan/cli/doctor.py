"""`cifargan doctor`: check the device, disk, data, weights and extras, and say how to fix or add what is missing."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal, NamedTuple

from cifargan import __version__
from cifargan.cli.options import Parser
from cifargan.cli.tables import aligned
from cifargan.untrusted import readable

LITTLE = 2e9  # bytes of disk that a run of BigGAN and its checkpoints need


class Finding(NamedTuple):
    """One line."""

    state: Literal["ok", "-", "!"]  # fine; missing, but optional; broken
    what: str
    detail: str
    advice: str = ""


def run(arguments: list[str]) -> int:
    """Check everything and print it; 2 if something that training needs is broken."""
    p = Parser(prog="cifargan doctor", description="Check this installation. Changes nothing, downloads nothing.")
    p.add_argument("--output-root", type=Path, metavar="DIR", default=Path("outputs"), help="folder for runs")
    options = p.parse_args(arguments)
    found = [*packages(), *hardware(), *disk(options.output_root), *data(), *weights()]
    lines = aligned([[finding.state, finding.what, finding.detail] for finding in found])
    print("\n".join(readable(line, limit=1000) for line in lines))
    if advice := [f"  {finding.what}: {finding.advice}" for finding in found if finding.advice]:
        print("\nwhat you can do:\n" + "\n".join(readable(line, limit=1000) for line in advice))
    broken = [finding.what for finding in found if finding.state == "!"]
    print(f"\nbroken: {', '.join(broken)}" if broken else "\nnothing that training needs is broken")
    return 2 if broken else 0


def packages() -> Iterator[Finding]:
    """Versions, and the required and optional packages that are missing."""
    installed = f"Python {platform.python_version()}, torch {_version('torch')}, {platform.platform(terse=True)}"
    yield Finding("ok", "cifargan", f"{__version__}, {installed}")
    missing: dict[str, list[str]] = {}
    for line in requires("cifargan") or []:
        requirement, _, marker = line.partition(";")
        name = re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0]
        extra = marker.split("extra ==")[1].strip().strip("'\"() ") if "extra ==" in marker else ""
        if not _version(name) and extra != "dev" and (extra != "fuzz" or sys.platform == "linux"):
            missing.setdefault(extra, []).append(name)
    for name in dict.fromkeys(missing.pop("", [])):  # a package may be listed once per Python version
        yield Finding("!", name, "not installed", f"pip install '{name}'")
    for extra, names in sorted(missing.items()):
        yield Finding("-", f"extra {extra}", f"without {', '.join(names)}", f"pip install 'cifargan[{extra}]'")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def hardware() -> Iterator[Finding]:
    """Devices with their memory, and threads."""
    import torch

    from cifargan.device import unused_gpu

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            try:
                free, total = torch.cuda.mem_get_info(i)
                torch.ones(8, device=f"cuda:{i}").sum().item()
            except RuntimeError as error:
                yield Finding(
                    "!", f"cuda:{i}", readable(str(error), limit=120), "check with nvidia-smi that it is free"
                )
                continue
            memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free, CUDA {torch.version.cuda}"
            yield Finding("ok", f"cuda:{i}", f"{torch.cuda.get_device_name(i)}, {memory}")
    elif torch.backends.mps.is_available():
        yield Finding("ok", "mps", "Apple GPU")
    elif reason := unused_gpu():
        yield Finding("!", "gpu", "this machine has an NVIDIA GPU that torch cannot use", reason)
    else:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        yield Finding("-", "gpu", f"none found (torch is built {built}); BigGAN takes days on a CPU")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("ok", "cpu", f"{usable} usable cores, {torch.get_num_threads()} threads in torch")


def disk(output_root: Path) -> Iterator[Finding]:
    """Whether the folders for runs and downloads can be written to, and how much is free there."""
    from cifargan.data.cache import cache_dir

    for what, path, setting in (
        ("output_root", output_root, "output_root=DIR"),
        ("cache", cache_dir(), "the environment variable CIFARGAN_CACHE=DIR"),
    ):
        place = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            yield Finding("!", what, f"{path}: cannot be written to", f"choose another folder with {setting}")
            continue
        free = shutil.disk_usage(place).free
        little = free < LITTLE
        advice = f"free some space, or choose another folder with {setting}" if little else ""
        yield Finding("!" if little else "ok", what, f"{path}: {free / 1e9:,.1f} GB free", advice)


def data() -> Iterator[Finding]:
    """Whether CIFAR-10 is here."""
    from cifargan.data.cifar10 import CIFAR10

    source = CIFAR10(download=False)
    if source.is_unpacked():
        yield Finding("ok", "CIFAR-10", f"{source.root}")
    elif source.archive.exists():
        yield Finding("ok", "CIFAR-10", f"{source.archive}, verified and unpacked at first use")
    else:
        advice = "cifargan data fetch, or train on data=folder or data=digits"
        yield Finding("-", "CIFAR-10", f"not in {source.root}", advice)


def weights() -> Iterator[Finding]:
    """Whether the networks that scores are computed with are here."""
    import torch

    from cifargan.evaluation.extractors import dinov2, inception
    from cifargan.evaluation.extractors.weights import sha256_of

    known = [("Inception", inception.PUBLISHED), *((f"DINOv2 {name}", one) for name, one in dinov2.PUBLISHED.items())]
    for what, published in known:
        named = os.environ.get(published.variable)
        cached = Path(torch.hub.get_dir(), "checkpoints", published.url.rpartition("/")[2])
        path = Path(named).expanduser() if named else cached
        if path.is_file() and os.access(path, os.R_OK):
            other = f"; {'not the published weights' if named else 'damaged: will be downloaded again'}"
            yield Finding("ok", what, f"{path}{'' if sha256_of(path) == published.checksum else other}")
        elif named or what == "Inception":
            advice = f"copy {published.url} there, or let cifargan train download it ({published.megabytes} MB)"
            detail = f"{published.variable}={named}: no such file, or not readable" if named else f"not in {path}"
            yield Finding("!" if named else "-", what, detail, advice)
