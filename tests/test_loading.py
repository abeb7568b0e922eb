"""Finding runs on disk, and bringing their generators back."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

import cifargan
from cifargan.config import build_generator, plain
from cifargan.errors import UserError
from cifargan.loading import load_generator
from cifargan.runs.checkpoint import CheckpointStore, load
from cifargan.runs.directory import RunDirectory, all_runs, find_run
from cifargan.sampling import Sampler

CLASSES = ["ant", "bee", "cat"]
SMALL = ("data.image_size=16", "model.generator.base_channels=4", "model.generator.latent_dim=8")


def start(path: Path, started: str, *, written: int = 0) -> Path:
    """A folder that looks like a run begun at `started`."""
    path.mkdir(parents=True)
    (path / "provenance.json").write_text(json.dumps({"sessions": [{"started": started}, {"started": "2999"}]}))
    os.utime(path / "provenance.json", ns=(written, written))
    return path


@pytest.fixture
def keep_run(composed: Callable[..., DictConfig], tmp_path: Path) -> Callable[..., Path]:
    """A function that leaves the folder of a run with two checkpoints of random weights, the first of them the best."""

    def keep(model: str) -> Path:
        config = composed(f"model={model}", "data=digits", *SMALL)
        path = start(tmp_path / "outputs" / model / "now", "2026-01-01")
        store = CheckpointStore(path / "checkpoints")
        for step in (5, 10):
            weights: dict[str, Any] = {}
            for i, name in enumerate(("generator", "ema")):
                torch.manual_seed(step + i)
                network = build_generator(config.model.generator, num_classes=len(CLASSES), image_size=16)
                weights[name] = network.state_dict()
            weights["discriminator"] = {}
            state = {**weights, "step": step, "classes": CLASSES, "config": plain(config), "speed": {}}
            store.save(state, step, best=step == 5)
        return path

    return keep


def test_runs_are_sorted_by_their_first_start(tmp_path: Path) -> None:
    assert all_runs(tmp_path) == all_runs(tmp_path / "nowhere") == []
    second = start(tmp_path / "a" / "x", "2026-02-01T00:00:00+0000")
    first = start(tmp_path / "b" / "deep" / "y", "2026-01-01T00:00:00+0000")
    # A sweep starts several within a second.
    last = start(tmp_path / "sweeps" / "9", "2026-03-01T00:00:00+0000", written=20)
    fourth = start(tmp_path / "sweeps" / "10", "2026-03-01T00:00:00+0000", written=10)
    broken = start(tmp_path / "c", "")
    (broken / "provenance.json").write_text("{")
    (tmp_path / "no run").mkdir()
    assert [run.path for run in all_runs(tmp_path)] == [broken, first, second, fourth, last]


def test_find_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^there is no run under outputs: train one first"):
        find_run(None)
    with pytest.raises(UserError, match=r"^there is no run at x; there is none under outputs either$"):
        find_run("x")
    old = start(Path("outputs/biggan/2026-01"), "2026-01")
    new = start(Path("outputs/dcgan/2026-02"), "2026-02")
    elsewhere = start(Path("elsewhere"), "2026-03")
    assert find_run(None) == find_run("latest") == RunDirectory(new)
    assert find_run("outputs/biggan/2026-01").path == find_run("biggan/2026-01").path == old
    assert find_run("elsewhere").path == elsewhere
    assert find_run(None, Path("outputs/biggan")).path == old
    with pytest.raises(UserError, match=r"^there is no run at outputs/bigan/2026-01; did you mean outputs/biggan/"):
        find_run("outputs/bigan/2026-01")
    with pytest.raises(UserError, match=r"^there is no run at zzz; the newest is outputs/dcgan/2026-02$"):
        find_run("zzz")
    with pytest.raises(UserError, match=r"^there is no run at outputs/biggan; "):
        find_run("outputs/biggan")


def test_load_generator_gives_the_weights_that_were_asked_for(keep_run: Callable[..., Path]) -> None:
    path = keep_run("cdcgan")
    loaded = load_generator(path, device="cpu")
    assert loaded.classes == tuple(CLASSES)
    assert (loaded.conditional, loaded.step, loaded.weights, loaded.batch_norm) == (True, 10, "ema", "standing")
    assert loaded.checkpoint == path / "checkpoints" / "step_000000010.safetensors"

    drawn = {}
    for checkpoint, step in (("last", 10), ("best", 5), ("5", 5)):
        for weights in ("ema", "raw"):
            one = load_generator(path, checkpoint=checkpoint, weights=weights, device="cpu")
            assert (one.step, one.weights) == (step, weights)
            drawn[checkpoint, weights] = one.sample(4, seed=3)
    assert torch.equal(drawn["last", "ema"], loaded.sample(4, seed=3))
    for weights in ("ema", "raw"):
        assert torch.equal(drawn["best", weights], drawn["5", weights])
        assert not torch.equal(drawn["best", weights], drawn["last", weights])
    assert not torch.equal(drawn["last", "ema"], drawn["last", "raw"])


def test_a_loaded_generator_draws_what_a_sampler_draws(
    keep_run: Callable[..., Path], composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = keep_run("cdcgan")
    network = build_generator(composed("model=cdcgan", *SMALL).model.generator, num_classes=len(CLASSES), image_size=16)
    network.load_state_dict(load(path / "checkpoints" / "step_000000010.safetensors")["ema"])
    expected = Sampler(network, CLASSES, batch_norm="running").sample(7, classes="bee", truncation=0.5, seed=4)

    monkeypatch.chdir(path.parents[2])
    loaded = cifargan.load_generator(batch_norm="running", device="cpu", batch_size=3)
    images = loaded.sample(7, classes="bee", truncation=0.5, seed=4)
    assert (images.shape, images.dtype, images.device.type) == ((7, 3, 16, 16), torch.uint8, "cpu")
    assert torch.equal(images, expected)


def test_an_unconditional_generator(keep_run: Callable[..., Path]) -> None:
    loaded = load_generator(keep_run("dcgan"), device="cpu")
    assert not loaded.conditional
    assert loaded.sample(3).shape == (3, 3, 16, 16)


def test_load_generator_refuses(keep_run: Callable[..., Path]) -> None:
    path = keep_run("cdcgan")
    with pytest.raises(UserError, match=r"^weights=emma: choose from ema, raw$"):
        load_generator(path, weights="emma")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^no checkpoint '7' in .*: there are 5, 10, best$"):
        load_generator(path, checkpoint="7")
    with pytest.raises(UserError, match=r"^batch_norm='evl' is unknown"):
        load_generator(path, batch_norm="evl", device="cpu")  # type: ignore[arg-type]
    last = path / "checkpoints" / "step_000000010.safetensors"
    last.write_bytes(last.read_bytes()[:1000])
    assert load_generator(path, device="cpu").step == 5  # the newest that is whole
    with pytest.raises(UserError, match=r"step_000000010\.safetensors is damaged"):
        load_generator(path, checkpoint="10")
    assert load_generator(path, checkpoint="5", device="cpu").step == 5
