"""Folders that look like runs, written without training anything."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

MakeRun = Callable[..., Path]

CONFIG: dict[str, Any] = {
    "name": "biggan",
    "seed": 3,
    "data": {"name": "digits", "image_size": 8},
    "loss": {"name": "hinge"},
    "trainer": {"steps": 200, "batch_size": 4},
    "optimizer": {"generator": {"lr": 0.0002, "betas": [0.5, 0.999]}},
    "evaluator": {"name": "inception", "samples": 100, "final_samples": 500},
}


def flat_record(**changes: Any) -> dict[str, Any]:
    """A line of evaluation.json, as training writes it."""
    return {
        "metric": "fid",
        "value": 20.0,
        "n": 100,
        "spread": None,
        "spread_over": None,
        "class_name": None,
        "reference_name": "digits",
        "reference_split": "train",
        "reference_n": 1498,
        "reference_fingerprint": "cd0f4874aa",
        "images": 100,
        "extractor": "inception",
        "weights_hash": "6726825d00",
        "resize": "TF1 bilinear to 299",
        "dtype": "float32",
        "subject": "training",
        "step": 100,
        "checkpoint": "last",
        "weights": "ema",
        "batch_norm": "standing",
        "truncation": None,
        "seed": 1,
        **changes,
    }


@pytest.fixture
def record() -> Callable[..., dict[str, Any]]:
    """A function that makes a line of evaluation.json."""
    return flat_record


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A function that writes a run under `outputs/`."""

    def make(
        name: str = "run",
        *,
        status: str = "finished",
        started: str = "2026-11-20T10:00:00+0000",
        records: list[dict[str, Any]] | None = None,
        overrides: tuple[str, ...] = ("experiment=biggan",),
        device: str = "cpu (x86_64)",
        speed: float = 50.0,
        config: dict[str, Any] | None = None,
        grids: tuple[int, ...] = (),
    ) -> Path:
        folder = tmp_path / "outputs" / name
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **(config or {})}))
        (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
        session = {
            "started": started,
            "git": {"commit": "0123456789abcdef", "dirty": True},
            "versions": {"torch": "2.15.0"},
            "seed": 7,
            "device": device,
            "data": {"name": "digits", "splits": ["train"], "fingerprint": "cd0f4874"},
        }
        (folder / "provenance.json").write_text(json.dumps({"sessions": [session]}))
        (folder / "status.json").write_text(json.dumps({"status": status, "time": 1000.0, "step": 200}))
        log = [
            {
                "step": step,
                "time": 900.0 + step,
                "loss/discriminator": 1.0 + step / 100,
                "loss/generator": 2.0,
                "speed/steps_per_s": speed / 4,
                "speed/images_per_s": speed,
            }
            for step in range(50, 201, 50)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        if records is not None:
            (folder / "evaluation.json").write_text(json.dumps({"records": records}))
        (folder / "samples").mkdir()
        for step in grids:
            # Each step has a shade of its own, so that a slider can be seen to move.
            pixels = np.full((102, 102, 3), step % 256, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "samples" / f"step_{step:09d}.png")
        return folder

    return make
