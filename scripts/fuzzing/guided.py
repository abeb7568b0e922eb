"""Fuzzing that is guided by coverage: atheris keeps the inputs that reach new code, and changes those.

One process for each reader, since what is measured must be imported under the eyes of atheris, and it ends the process.
"""

import argparse
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

TARGETS = (
    *("checkpoint", "checkpoint_pickle", "weights_pickle", "picture", "archive", "npz_images", "npz_header"),
    *("npz_statistics", "overrides_yaml", "pages"),
)
MAX_LENGTH = 4096  # bytes of an input


def available() -> bool:
    """Whether atheris is here; it has wheels for Linux, and not for every Python."""
    return importlib.util.find_spec("atheris") is not None


def run(target: str, *, seed: int, cases: int, seconds: float, out: Path) -> dict[str, object]:
    """Fuzz one reader in a process of its own, and give its tally."""
    with tempfile.TemporaryDirectory() as folder:
        tally = Path(folder) / "tally.json"
        words = ["--seed", str(seed), "--cases", str(cases), "--seconds", str(seconds), "--out", str(out)]
        command = [sys.executable, "-m", "fuzzing.guided", target, *words, "--folder", folder, "--tally", str(tally)]
        scripts = Path(__file__).parents[1]
        environment = {**os.environ, "PYTHONPATH": str(scripts), "CIFARGAN_CACHE": f"{folder}/cache"}
        ended = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        try:
            found: dict[str, object] = json.loads(tally.read_text())
        except FileNotFoundError:
            found = {"cases": 0, "refused": 0, "worked": 0, "findings": []}
        if ended.returncode != 0:
            last = ended.stderr.strip().splitlines()[-3:]
            found["findings"] = [*found["findings"], f"the process ended with {ended.returncode}: {' / '.join(last)}"]  # type: ignore[misc]
        return found


def read(target: str, folder: Path) -> tuple[Callable[[bytes], object], Sequence[bytes]]:
    """A reader of bytes, and good inputs for it; to be imported under atheris."""
    import numpy as np
    import torch

    from fuzzing.damage import packed
    from fuzzing.parts import Inputs
    from fuzzing.readers import sealed

    inputs = Inputs(folder)
    readers = inputs.readers

    def saved(content: object, *, old: bool = False) -> bytes:
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=not old)
        return file.getvalue()

    def array(content: object) -> bytes:
        file = io.BytesIO()
        np.save(file, np.asarray(content))
        return file.getvalue()

    def inside(read: Callable[[bytes], object], **others: bytes) -> Callable[[bytes], object]:
        """The bytes as the pickle of a zip that is otherwise well."""
        parts = {"a/version": b"3\n", "a/byteorder": b"little", "a/data/0": bytes(16), **others}
        return lambda data: read(packed({"a/data.pkl": data, **parts}))

    state = {"format": 3, "config": {"name": "x"}, "classes": ["a"], "step": 1, "ema": {"w": torch.zeros(4)}}
    pickle = _member(saved(state), "data.pkl")
    flat = _member(saved({"w": torch.zeros(4)}), "data.pkl")
    zeros = array(np.zeros((2, 4, 4, 3), np.uint8))
    page = {"sessions": [{"started": "2026-01-01T00:00:00", "events": [{"time": "x"}]}], "status": "running"}
    score = {**page, "records": [{"metric": "fid", "value": 1.0, "n": 5, "class_name": None}]}
    lines = [b"- loss=hinge\n- trainer.steps=3\n- +a.b='x y'\n- ~c\n", b'["name=x", "data.root=/a"]', b"- 'a=${b}'\n"]

    def images_of(data: bytes) -> object:
        return readers.arrays(
            packed({"images.npy": data, "labels.npy": array([0, 1]), "classes.npy": array(["a", "b"])})
        )

    return {
        "checkpoint": (lambda data: readers.checkpoint(sealed(data)), [saved(state), saved(state, old=True)]),
        "checkpoint_pickle": (inside(lambda data: readers.checkpoint(sealed(data))), [pickle]),
        "weights_pickle": (inside(readers.weights), [flat]),
        "picture": (readers.picture, [inputs.image(seed) for seed in range(12)]),
        "archive": (readers.archive, [inputs.archive()]),
        "npz_images": (readers.arrays, [inputs.arrays(compressed=True), inputs.arrays(compressed=False)]),
        "npz_header": (images_of, [zeros]),
        "npz_statistics": (readers.statistics, [inputs.statistics(compressed=True)]),
        "overrides_yaml": (readers.overrides, lines),
        "pages": (readers.pages, [json.dumps(page).encode(), json.dumps(score).encode(), b"{}"]),
    }[target]


def _member(data: bytes, name: str) -> bytes:
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return next(archive.read(member) for member in archive.namelist() if member.endswith(name))


def main() -> None:
    """Fuzz one reader until there were enough cases; its tally goes into a file."""
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    p.add_argument("target", choices=TARGETS)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--cases", type=int, required=True)
    p.add_argument("--seconds", type=float, required=True)
    p.add_argument("--folder", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--tally", type=Path, required=True)
    options = p.parse_args()

    import atheris

    # All of torch and numpy would take minutes; of torch it is the reader of pickles that matters.
    with atheris.instrument_imports(include=["PIL", "pickletools", "yaml", "zipfile"]):
        import pickletools  # noqa: F401
        import zipfile  # noqa: F401

        import yaml  # noqa: F401
        from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin  # noqa: F401
    import logging
    import warnings

    import hydra  # noqa: F401
    import torch
    import torch.utils.tensorboard
    from torch._weights_only_unpickler import Unpickler

    atheris.instrument_func(Unpickler.load)
    with atheris.instrument_imports(include=["cifargan"]):
        reader, good = read(options.target, options.folder)
    from fuzzing.judge import ENOUGH, Tally, keep, outcome

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    corpus = options.folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(good):
        (corpus / str(number)).write_bytes(data)
    tally = Tally()
    until = time.monotonic() + options.seconds

    def case(data: bytes) -> None:
        kind, text = outcome(lambda: reader(data))
        if tally.add(kind, text) and text not in tally.findings[:-1]:
            finding = {"target": options.target, "bytes": data.hex(), "what": text}
            keep(finding, options.out / f"{options.target}_{options.seed}_{tally.cases}.json")
        over = tally.cases >= options.cases or time.monotonic() > until or len(tally.findings) >= ENOUGH
        if over or tally.cases % 500 == 0:
            # At times: a decoder that crashes takes the process with it.
            options.tally.write_text(json.dumps(vars(tally)))
        if over:
            os._exit(0)  # atheris has no other way to stop

    # Its own limits on time and memory would end the process; `outcome` has them.
    limits = ["-timeout=0", "-rss_limit_mb=0", "-malloc_limit_mb=0", f"-max_len={MAX_LENGTH}", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *limits, f"-seed={options.seed + 1}", str(corpus)], case)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
