"""Throws damaged and hostile files, settings and overrides at their readers, and sees that each is refused in one line.

    python scripts/fuzz.py --seconds 60
    python scripts/fuzz.py --cases 1000 --part npz --seed 7

A case is a seed: a good input, changed by a few operations that each have a seed of their own. It must work, or end in
an error that the command line explains in one line. Anything else, a hang or a hunger for memory is a finding: it is
told with the smallest set of operations that still shows it, and kept as a file.
"""

# ruff: noqa: S311 - the cases are to be had again
import argparse
import contextlib
import copy
import functools
import hashlib
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import hydra
import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from cifargan.build import check, plain
from cifargan.cli import main as cifargan
from cifargan.cli.errors import explain, groups, options
from cifargan.cli.overrides import overrides_of, reject_null_groups, split_flags
from cifargan.config import conf_dir, from_file
from cifargan.data.folder import Folder
from cifargan.data.loose import load_images
from cifargan.evaluation.features import FeatureExtractor
from cifargan.evaluation.records import FeatureSpace
from cifargan.evaluation.reference import import_statistics
from cifargan.runs import load_generator
from cifargan.training.checkpoint import SEAL, SEAL_BYTES, CheckpointStore, load

PATIENCE = 5.0  # seconds that one case may take
APPETITE = 1024  # MiB that one case may add to the highest memory of the process
ENOUGH = 20  # findings after which a part is given up
NASTY: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, float("nan"), float("inf"), "", " ", "???", "null", "auto"),
    *("${oc.env:HOME}", "${hydra:runtime.cwd}", "${name}", "${a", "\\${x}", "../../x", "/etc/passwd", "os.system"),
    *("\x1b[31m", "a\nb", "\ud800", "x" * 5000, "<script>", "'", '"', "=", "é" * 40, [], {}, [[]], {"a": {}}, [1, "a"]),
    *({"_target_": "os.system"}, {"name": None}, [None], b"bytes"),
)


SPACE = FeatureSpace(extractor="stub", weights_hash="0", resize="none", dtype="float32")


class TooSlowError(BaseException):
    """A case took longer than it may; no `except Exception` of a reader keeps it."""


@dataclass
class Tally:
    """What came of one part."""

    cases: int = 0
    refused: int = 0
    worked: int = 0
    findings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """One kind of input.

    Args:
        make: changes a good input by the operations of these seeds, and hands it to its reader.
        most: operations of one case.
    """

    make: Callable[[list[int]], object]
    most: int = 4


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


class Inputs:
    """The good inputs, in a folder of their own.

    Args:
        folder: where files may be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.random = np.random.default_rng(0)
        self.pictures = folder / "pictures" / "cat"
        self.pictures.mkdir(parents=True)

    def image(self, seed: int) -> bytes:
        """A small picture in one of the formats and modes that are read."""
        rng = random.Random(seed)
        mode = rng.choice(("RGB", "RGBA", "L", "P", "1", "LA"))
        picture = Image.fromarray(self.random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).convert(mode)
        kind = rng.choice(("PNG", "PNG", "JPEG", "WEBP", "GIF"))
        file = io.BytesIO()
        (picture.convert("RGB") if kind == "JPEG" else picture).save(file, kind)
        return file.getvalue()

    def archive(self) -> bytes:
        """A zip of two classes."""
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for i in range(3):
                archive.writestr(f"data/{'ant' if i else 'bee'}/{i}.png", self.image(2 * i))
        return file.getvalue()

    def images(self, seeds: list[int]) -> object:
        """Read a picture in a folder, in a zip, or as training data."""
        rng = random.Random(seeds[0])
        way = rng.randrange(6)
        data = functools.reduce(damage, seeds[1:], self.archive() if way == 0 else self.image(seeds[0]))
        if way == 0:
            path = self.folder / "sent.zip"
            path.write_bytes(data)
            return load_images(path)
        (self.pictures / "0.png").write_bytes(data)
        if way > 1:
            return load_images(self.pictures.parent)
        cache = self.folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        return Folder(root=str(self.pictures.parent), image_size=8, cache=str(cache)).load()

    def npz(self, seeds: list[int]) -> object:
        """Read arrays as images or as statistics."""
        rng = random.Random(seeds[0])
        file = io.BytesIO()
        save = rng.choice((np.savez, np.savez_compressed))
        as_images = rng.random() < 0.5
        if as_images:
            images = self.random.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
            save(file, images=images, labels=np.array([0, 1, 1]), classes=np.array(["ant", "bee"]))
        else:
            save(file, mu=np.zeros(6), sigma=np.eye(6), about=np.array(json.dumps({"n": 5, **vars(SPACE)})))
        path = self.folder / "sent.npz"
        # Behind checksums that fit, or with them.
        inside = rng.random() < 0.7
        data = _repacked(file.getvalue(), seeds[1:]) if inside else functools.reduce(damage, seeds[1:], file.getvalue())
        path.write_bytes(data)
        if as_images:
            return load_images(path)
        stub = SimpleNamespace(dim=6, name="stub", space=SPACE)
        return import_statistics(path, cast(FeatureExtractor, stub))

    @functools.cached_property
    def configs(self) -> list[dict[str, Any]]:
        """The composed configurations of some models."""
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            return [
                plain(hydra.compose("train", ["name=x", "data=digits", "evaluator=none", f"model={model}"]))
                for model in ("cdcgan", "biggan", "sagan")
            ]

    def config(self, seeds: list[int]) -> object:
        """Check a configuration, as it is composed or as it lies in a file."""
        config = copy.deepcopy(random.Random(seeds[0]).choice(self.configs))
        for seed in seeds[1:]:
            disturb(config, seed)
        return check(OmegaConf.create(config) if seeds[0] % 2 and not _has_bytes(config) else from_file(config, "sent"))

    @functools.cached_property
    def settings(self) -> list[str]:
        """Every dotted setting of one configuration."""
        found: list[str] = []

        def walk(node: dict[str, Any], prefix: str) -> None:
            for key, value in node.items():
                found.append(f"{prefix}{key}={value}")
                if isinstance(value, dict):
                    walk(value, f"{prefix}{key}.")

        walk(self.configs[0], "")
        return [*found, *(f"{group}={name}" for group in groups() for name in options(group))]

    def override(self, seed: int) -> str:
        """One override, right or wrong."""
        rng = random.Random(seed)
        text = rng.choice(self.settings)
        key, _, _ = text.partition("=")
        match rng.randrange(6):
            case 0:
                return text
            case 1:
                return f"{rng.choice(('', '+', '++', '~', '-', '--', ' '))}{text}"
            case 2:
                return f"{key}={rng.choice(NASTY)}"
            case 3:
                return f"{key}={rng.choice(('[1,2', '{a:1', '1,2', 'range(3)', 'choice(1)', '../../evil', '${oc.env:HOME}'))}"
            case 4:
                return rng.choice(
                    ("--experimental-rerun=x", "--config-dir=/tmp", "hydra.run.dir=x", "hydra/launcher=a", "-m")
                )
            case _:
                return damage(text.encode(), seed).decode(errors="surrogateescape")

    def overrides(self, seeds: list[int]) -> object:
        """Read the overrides that a run keeps, or compose some as the command line does."""
        lines = [self.override(seed) for seed in seeds[1:]]
        if seeds[0] % 8:
            folder = self.folder / "run" / ".hydra"
            folder.mkdir(parents=True, exist_ok=True)
            text = OmegaConf.to_yaml(OmegaConf.create(lines)).encode(errors="surrogatepass")
            (folder / "overrides.yaml").write_bytes(damage(text, seeds[0]) if seeds[0] % 3 else text)
            return overrides_of(folder.parent)
        _, overrides = split_flags(lines)
        reject_null_groups(overrides)
        # Hydra's own settings are the user's on a command line: only files may not have them.
        overrides = [text for text in overrides if "hydra" not in text]
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            return check(OmegaConf.create(plain(hydra.compose("train", ["name=x", *overrides]))))

    @functools.cached_property
    def checkpoint(self) -> bytes:
        """The checkpoint of a run of one step."""
        small = (
            "model.generator.latent_dim=4",
            "model.generator.base_channels=2",
            "model.discriminator.base_channels=2",
        )
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(io.StringIO()):
            code = cifargan(
                [
                    "train",
                    "debug=fast",
                    "data.image_size=16",
                    "device=cpu",
                    "trainer.steps=1",
                    *small,
                    "hydra.run.dir=trained",
                ]
            )
        if code != 0:
            raise RuntimeError("the run that the checkpoint is taken from failed")
        sys.argv = sys.argv[:1]
        (self.folder / "checked" / "checkpoints").mkdir(parents=True)
        (self.folder / "checked" / "provenance.json").write_text("{}")
        return CheckpointStore(self.folder / "trained" / "checkpoints").find("last").read_bytes()

    @functools.cached_property
    def state(self) -> dict[str, Any]:
        """What that checkpoint holds."""
        _ = self.checkpoint
        return load(CheckpointStore(self.folder / "trained" / "checkpoints").find("last"))

    def checkpoints(self, seeds: list[int]) -> object:
        """Load a checkpoint, and bring back its generator; a checksum that fits is something anyone can write."""
        data = self.checkpoint
        if seeds[0] % 4 == 0:
            state = copy.deepcopy(self.state)
            for seed in seeds[1:]:
                disturb(state, seed)
            file = io.BytesIO()
            torch.save(state, file)
            data = file.getvalue()
        else:
            data = functools.reduce(damage, seeds[1:], data[:-SEAL_BYTES])
        if seeds[0] % 16:
            data += SEAL + hashlib.sha256(data).hexdigest().encode() + b"\n"
        path = self.folder / "checked" / "checkpoints" / "step_000000001.pt"
        path.write_bytes(data)
        load(path)
        return load_generator(self.folder / "checked", device="cpu")

    def parts(self) -> dict[str, Part]:
        """Every part by its name."""
        return {
            "configs": Part(self.config, most=3),
            "overrides": Part(self.overrides, most=3),
            "checkpoints": Part(self.checkpoints),
            "images": Part(self.images, most=5),
            "npz": Part(self.npz, most=5),
        }


def _repacked(data: bytes, seeds: list[int]) -> bytes:
    """A zip whose members are damaged and whose checksums fit nevertheless."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as good, zipfile.ZipFile(file, "w") as bad:
        contents = {name: good.read(name) for name in good.namelist()}
        for seed in seeds:
            name = list(contents)[seed % len(contents)]
            # Headers are what readers believe, and they are short.
            head = 128 if seed % 3 else len(contents[name])
            contents[name] = damage(contents[name][:head], seed) + contents[name][head:]
        for name, content in contents.items():
            bad.writestr(name, content)
    return file.getvalue()


def _has_bytes(tree: Any) -> bool:
    """What no YAML file gives, and a checkpoint can."""
    if isinstance(tree, dict):
        return any(not isinstance(key, str | int) or _has_bytes(value) for key, value in tree.items())
    return isinstance(tree, bytes) or (isinstance(tree, list) and any(map(_has_bytes, tree)))


@contextlib.contextmanager
def alarmed() -> Iterator[None]:
    """Stop what is inside after `PATIENCE`."""

    def late(*_: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak() -> int:
    """The highest memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform == "darwin" else 1024)


def outcome(part: Part, seeds: list[int]) -> tuple[str, str]:
    """What came of a case: `worked`, `refused` or `finding`, and what is to be said of it."""
    before = peak()
    result = "worked", ""
    try:
        with alarmed():
            part.make(seeds)
    except TooSlowError:
        return "finding", f"took more than {PATIENCE:g} s"
    except SystemExit as error:
        return "finding", f"exit {error.code}"
    except Exception as error:
        line = explain(error)
        clear = bool(line) and not str(line).startswith("out of memory")
        result = ("refused", str(line)) if clear else ("finding", f"{type(error).__name__}: {error}"[:300])
    if peak() - before > APPETITE:
        return "finding", f"took {peak() - before} MiB more memory"
    return result


def smallest(part: Part, seeds: list[int]) -> list[int]:
    """The operations without those that the finding does not need."""
    for seed in seeds[1:]:
        fewer = [seeds[0], *(other for other in seeds[1:] if other != seed)]
        if outcome(part, fewer)[0] == "finding":
            seeds = fewer
    return seeds


def fuzz(name: str, part: Part, *, seed: int, cases: int, until: float, out: Path) -> Tally:
    """Try cases of one part until there were so many, or it is so late."""
    tally = Tally()
    while tally.cases < cases and time.monotonic() < until and len(tally.findings) < ENOUGH:
        rng = random.Random(f"{seed} {name} {tally.cases}")
        seeds = [rng.randrange(2**32) for _ in range(1 + rng.randint(1, part.most))]
        tally.cases += 1
        kind, text = outcome(part, seeds)
        tally.worked += kind == "worked"
        tally.refused += kind == "refused"
        if kind == "finding":
            least = smallest(part, seeds)
            tally.findings.append(text)
            out.mkdir(parents=True, exist_ok=True)
            about = {"part": name, "seed": seed, "case": tally.cases - 1, "seeds": least, "what": text}
            (out / f"{name}_{seed}_{tally.cases - 1}.json").write_text(json.dumps(about, indent=2) + "\n")
    return tally


def main() -> int:
    """Fuzz, and print a table; 1 if there is a finding."""
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--seconds", type=float, default=float("inf"), help="in all, shared evenly by the parts")
    p.add_argument("--cases", type=int, default=sys.maxsize, help="of each part")
    p.add_argument("--part", choices=("configs", "overrides", "checkpoints", "images", "npz"), action="append")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--out", type=Path, default=Path("fuzz_findings"), help="folder for findings (default: fuzz_findings)"
    )
    p.add_argument("--again", type=Path, metavar="FILE", help="one finding again, with its traceback")
    options = p.parse_args()
    if options.seconds == float("inf") and options.cases == sys.maxsize and not options.again:
        p.error("say how long: --seconds or --cases")
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    out = options.out.absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CIFARGAN_CACHE"] = f"{folder}/cache"
        inputs = Inputs(Path(folder))
        parts = inputs.parts()
        # What is made once is no case, and takes longer than one may.
        if options.again or not options.part or "checkpoints" in options.part:
            _ = inputs.state
        _ = inputs.settings
        if options.again:
            finding = json.loads(options.again.read_text())
            parts[finding["part"]].make(finding["seeds"])
            print("it works")
            return 0
        chosen = options.part or list(parts)
        found = 0
        print(f"{'part':12} {'cases':>8} {'refused':>8} {'worked':>8} {'findings':>8} {'seconds':>8}")
        for name in chosen:
            start = time.monotonic()
            tally = fuzz(
                *(name, parts[name]),
                seed=options.seed,
                cases=options.cases,
                until=start + options.seconds / len(chosen),
                out=out,
            )
            counts = (tally.cases, tally.refused, tally.worked, len(tally.findings), round(time.monotonic() - start))
            print(f"{name:12} " + " ".join(f"{count:8,}" for count in counts), flush=True)
            for text in dict.fromkeys(tally.findings):
                print(f"    {text.encode('unicode_escape', 'surrogatepass').decode()}", flush=True)
            found += len(tally.findings)
    if found:
        print(f"findings: {out}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
