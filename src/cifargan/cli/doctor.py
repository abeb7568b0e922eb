"""`cifargan doctor`: what is here, what is missing, and the command that gets it."""

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal, NamedTuple

from cifargan import __version__
from cifargan.cli.options import Parser
from cifargan.cli.tables import aligned
from cifargan.errors import UserError
from cifargan.untrusted import readable

State = Literal["ok", "-", "!"]  # well, missing but not needed, broken
LITTLE = 2e9  # bytes of disk below which a run of BigGAN and its checkpoints do not fit


class Finding(NamedTuple):
    """One line."""

    state: State
    what: str
    detail: str
    advice: str = ""


def run(arguments: list[str]) -> int:
    """Look at everything and say it; 2 where something that training needs is broken."""
    p = Parser(
        prog="cifargan doctor", description="What is here and what is missing. Changes nothing, fetches nothing."
    )
    p.add_argument("--output-root", type=Path, metavar="DIR", default=Path("outputs"), help="where runs are to lie")
    options = p.parse_args(arguments)
    found: list[Finding] = []
    checks: list[Callable[[], Iterator[Finding]]] = [
        versions,
        hardware,
        lambda: disk(options.output_root),
        data,
        weights,
        extras,
    ]
    for check in checks:
        found += check()
    lines = aligned([[finding.state, finding.what, finding.detail] for finding in found])
    print("\n".join(readable(line, limit=1000) for line in lines))
    needed = [finding for finding in found if finding.advice]
    if needed:
        print("\nwhat could be done:")
        print("\n".join(f"  {finding.what}: {readable(finding.advice, limit=1000)}" for finding in needed))
    broken = [finding.what for finding in found if finding.state == "!"]
    print(f"\nbroken: {', '.join(broken)}" if broken else "\nnothing that training needs is broken")
    return 2 if broken else 0


def versions() -> Iterator[Finding]:
    """Python and the packages that the project needs."""
    yield Finding(
        "ok", "cifargan", f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    )
    # Those with a condition are listed once for each Python version.
    for name in dict.fromkeys(_name(line) for line in requires("cifargan") or [] if "extra ==" not in line):
        try:
            yield Finding("ok", name, version(name))
        except PackageNotFoundError:
            yield Finding("!", name, "not installed", f"pip install '{name}'")


def _name(requirement: str) -> str:
    """`torch` of `torch>=2.11`."""
    match = re.match(r"[\w.-]+", requirement.strip())
    return match[0] if match else requirement


def hardware() -> Iterator[Finding]:
    """Devices, their memory, threads."""
    import torch

    from cifargan.device import unused_gpu

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            try:
                free, total = torch.cuda.mem_get_info(i)
                x = torch.ones(8, device=f"cuda:{i}")
                fine = float((x @ x).item()) == 8.0
            except RuntimeError as error:
                yield Finding("!", f"cuda:{i}", readable(str(error), limit=120), "see whether nvidia-smi shows it free")
                continue
            name = torch.cuda.get_device_name(i)
            detail = f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, CUDA {torch.version.cuda}"
            yield Finding("ok" if fine else "!", f"cuda:{i}", detail, "" if fine else "it computes wrongly: replace it")
    elif torch.backends.mps.is_available():
        yield Finding("ok", "mps", "Apple GPU")
    elif reason := unused_gpu():
        yield Finding("!", "gpu", "an NVIDIA GPU is here, and torch cannot use it", reason)
    else:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
        yield Finding("-", "gpu", f"none is seen ({built}); BigGAN takes days on a CPU")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("ok", "cpu", f"{usable} usable cores, {torch.get_num_threads()} threads in torch")


def disk(output_root: Path) -> Iterator[Finding]:
    """Whether the places that are written to can be, and how much is free there."""
    from cifargan.data.cache import cache_dir

    for what, path, setting in (
        ("output_root", output_root, "output_root=DIR"),
        ("cache", cache_dir(), "the environment variable CIFARGAN_CACHE=DIR"),
    ):
        place = path.absolute()
        while not place.exists() and place != place.parent:
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK):
            yield Finding("!", what, f"{path}: cannot be written to", f"choose another place by {setting}")
            continue
        free = shutil.disk_usage(place).free
        detail = f"{path}: {free / 1e9:,.1f} GB free"
        if free < LITTLE:
            yield Finding("!", what, detail, f"free some space, or choose another place by {setting}")
        else:
            yield Finding("ok", what, detail)


def data() -> Iterator[Finding]:
    """CIFAR-10, and images that were decoded before."""
    from cifargan.data.cache import cache_dir
    from cifargan.data.cifar10 import CIFAR10

    source = CIFAR10(download=False)
    if source.is_unpacked():
        yield Finding("ok", "CIFAR-10", f"{source.root}")
    elif source.archive.exists():
        yield Finding("ok", "CIFAR-10", f"{source.archive}, to be checked and unpacked at first use")
    else:
        yield Finding(
            "-", "CIFAR-10", f"not in {source.root}", "cifargan data fetch, or train on data=folder or data=digits"
        )
    decoded = list((cache_dir() / "folder").glob("*/images-*.npy"))
    size = sum(path.stat().st_size for path in decoded)
    yield Finding("ok", "decoded", f"{len(decoded)} sets of images from folders, {size / 1e6:,.0f} MB")


def weights() -> Iterator[Finding]:
    """The networks that scores are made with."""
    import torch

    from cifargan.evaluation.extractors import dinov2, inception
    from cifargan.evaluation.extractors.weights import sha256_of

    known = [("Inception", inception.PUBLISHED), *((f"DINOv2 {name}", one) for name, one in dinov2.PUBLISHED.items())]
    for what, published in known:
        named = os.environ.get(published.variable)
        path = (
            Path(named).expanduser()
            if named
            else Path(torch.hub.get_dir(), "checkpoints", published.url.rpartition("/")[2])
        )
        needed = f"copy {published.url} there, or let cifargan train fetch it ({published.megabytes} MB)"
        if not path.is_file():
            broken: State = "!" if named else "-"
            detail = f"{published.variable}={named}: there is no such file" if named else f"not in {path}"
            advice = needed if what == "Inception" or named else ""
            yield Finding(broken, what, detail, advice)
            continue
        try:
            whole = sha256_of(path) == published.checksum
        except UserError as error:
            yield Finding("!", what, str(error), "let it be read")
            continue
        other = (
            "" if whole else "; other weights than the published ones" if named else "; damaged, will be fetched anew"
        )
        yield Finding("ok" if whole or named else "-", what, f"{path}{other}")


def extras() -> Iterator[Finding]:
    """The optional parts."""
    wanted: dict[str, list[str]] = {}
    for line in requires("cifargan") or []:
        requirement, _, marker = line.partition(";")
        if "extra ==" in marker:
            extra = marker.split("extra ==")[1].strip().strip("'\"() ")
            wanted.setdefault(extra, []).append(_name(requirement))
    for extra, names in sorted(wanted.items()):
        if extra == "dev":
            continue
        missing = [name for name in names if not _installed(name)]
        if missing:
            yield Finding("-", f"extra {extra}", f"without {', '.join(missing)}", f"pip install 'cifargan[{extra}]'")
        else:
            yield Finding("ok", f"extra {extra}", ", ".join(f"{name} {version(name)}" for name in names))


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
