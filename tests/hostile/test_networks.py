"""Networks from untrusted checkpoints and exported files: their descriptions are checked before use."""

import contextlib
import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from cifargan import tensor_file
from cifargan.build import build_trainer
from cifargan.config import parse
from cifargan.errors import UserError
from cifargan.evaluation.extractors.dinov2 import DINOv2
from cifargan.evaluation.extractors.inception import Inception
from cifargan.evaluation.metrics import Gaussian
from cifargan.evaluation.reference import FeatureCache
from cifargan.loading import load_generator
from cifargan.runs.checkpoint import CheckpointStore, State, load
from cifargan.runs.directory import RunDirectory
from cifargan.schema import from_file

Change = Callable[[dict[str, Any]], Any]
Command = Callable[..., CompletedProcess[str]]
Refusal = Callable[..., str]
Within = Callable[[int], contextlib.AbstractContextManager[None]]


def _set(path: str, value: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for key in parents:
            content = content[key]
        content[last] = value

    return change


@pytest.fixture
def tampered(run: Path) -> Callable[[Change], Path]:
    """A function that changes the state in the newest checkpoint of `run`, and gives the run."""

    def change(how: Callable[[State], Any]) -> Path:
        store = CheckpointStore(run / "checkpoints")
        state = load(store.find("last"))
        how(state)
        store.save(state, 2)
        return run

    return change


@pytest.fixture(scope="session")
def unchanged(invoke: Callable[..., CompletedProcess[str]], trained: Path) -> Path:
    """An exported file; not to be changed."""
    out = trained.parent / "unchanged.safetensors"
    ran = invoke(trained.parent, "export", "run", "--format", "safetensors", "--device", "cpu", "--out", str(out))
    assert ran.returncode == 0, ran.stderr
    return out


@pytest.fixture
def sent(unchanged: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """A function that writes the exported file with another card."""

    def write(change: Change) -> Path:
        tensors, card = tensor_file.read(unchanged)
        change(card)
        path = tmp_path / "sent.safetensors"
        path.write_bytes(tensor_file.to_bytes(tensors, card))
        return path

    return write


def _laughs() -> list[Any]:
    bomb: list[Any] = ["ha"]
    for _ in range(14):
        bomb = [bomb, bomb]
    return bomb


GENERATOR = "config.model.generator"
LIES: dict[str, tuple[Change, str]] = {  # for both kinds of files
    "environment": (_set("config.data.image_size", "${oc.env:CIFARGAN_SECRET}"), "is not looked up"),
    "environment in the model": (_set(f"{GENERATOR}.base_channels", "${oc.env:CIFARGAN_SECRET}"), "looked up"),
    "a chain": (lambda state: state["config"].update(a="${oc.env:CIFARGAN_SECRET}", name="${a}"), "is not looked up"),
    "hydra": (_set("config.name", "${hydra:runtime.cwd}"), "is not looked up"),
    "target": (_set(f"{GENERATOR}._target_", "os.system"), "_target_: no such setting"),
    "dotted name": (_set(f"{GENERATOR}.name", "os.system"), "no such name"),
    "laughs": (_set("config.laughs", _laughs()), "larger than"),
    "no group": (_set("config.model", 3), "does not say what its networks are|expected a group"),
    "no config": (lambda state: state.pop("config"), "does not say what its networks are"),
    "step": (_set("step", "\x1b[31mred"), "does not say what its networks are"),
    "speed": (_set("speed", 3), "damaged"),
    "huge network": (_set(f"{GENERATOR}.base_channels", 4000), "is of another generator"),
    "absurd network": (_set(f"{GENERATOR}.base_channels", 10**30), "damaged|expected|another generator"),
    "other network": (_set(f"{GENERATOR}.name", "biggan"), "no such setting"),
    "huge images": (_set("config.data.image_size", 2**11), "does not say what its networks are"),
    "traversal": (_set("classes", [f"../../{i}" for i in range(10)]), "holds a slash"),
    "absolute": (_set("classes", [f"/tmp/{i}" for i in range(10)]), "holds a slash"),
    "dots": (_set("classes", [".."] * 10), "is no name|not a name"),
    "terminal": (_set("classes", [f"\x1b]0;{i}\x07\n" for i in range(10)]), "do not print"),
    "long": (_set("classes", ["x" * 300] * 10), "is longer than 128 bytes"),
}
OF_CHECKPOINTS: dict[str, tuple[Change, str]] = {
    "key": (_set("config.data", {1: 2}), "a key that is no text|a key"),
    "weights": (lambda state: state.update(generator=3, ema=[1]), "weights are not float32 tensors"),
    "half weights": (
        lambda state: state.update(ema={key: tensor.half() for key, tensor in state["ema"].items()}),
        "weights are not float32 tensors",
    ),
}
OF_CARDS: dict[str, tuple[Change, str]] = {
    "fewer classes": (_set("classes", ["a"]), "is of another generator"),
    "weights": (_set("weights", "\x1b[31m"), "is damaged"),
    "format": (_set("format", 99), "has format 'generator 99'; this version reads generator 1"),
    "kind": (_set("kind", "\x1b[2J"), r"has format '\x1b[2J 1'"),
}


def refused(path: Path, within: Within) -> str:
    with within(256), pytest.raises(UserError) as error:
        load_generator(path, device="cpu")
    line = str(error.value)
    assert line.isprintable()
    assert "no-file-may-reveal-this" not in line
    return line


@pytest.mark.parametrize("lie", [*LIES, *OF_CHECKPOINTS])
def test_a_changed_checkpoint_is_refused(tampered: Callable[[Change], Path], within: Within, lie: str) -> None:
    change, message = {**LIES, **OF_CHECKPOINTS}[lie]
    line = refused(tampered(change), within)
    assert any(part in line for part in message.split("|")), line


@pytest.mark.parametrize("lie", [*LIES, *OF_CARDS])
def test_a_changed_card_is_refused(sent: Callable[[Change], Path], within: Within, lie: str) -> None:
    change, message = {**LIES, **OF_CARDS}[lie]
    line = refused(sent(change), within)
    assert any(part in line for part in [*message.split("|"), repr(message)[1:-1]]), line


def test_commands_refuse_in_one_line(
    refusal: Refusal, tampered: Callable[[Change], Path], sent: Callable[[Change], Path], tmp_path: Path
) -> None:
    change = _set("config.data.root", "${oc.env:CIFARGAN_SECRET}")
    run, file = str(tampered(change)), str(sent(change))
    before = sorted(tmp_path.rglob("*"))
    for source in (run, file):
        for words in (("sample", source), ("evaluate", source), ("train", f"init={source}", "evaluator=none")):
            device = "device=cpu" if words[0] == "train" else "--device=cpu"
            assert "is not looked up" in refusal(*words, device)
    assert sorted(tmp_path.rglob("*")) == before


def test_commands_read_unchanged_files(
    command: Command, tampered: Callable[[Change], Path], sent: Callable[[Change], Path]
) -> None:
    run = tampered(lambda state: None)
    for source in (run, run / "checkpoints" / "step_000000002.safetensors", sent(lambda card: None)):
        ran = command("sample", str(source), "--device", "cpu", "--per-class", "1")
        assert ran.returncode == 0, ran.stderr
    assert command("train", f"resume={run}", "trainer.steps=3").returncode == 0


@pytest.mark.parametrize("value", [None, [], "x"], ids=repr)
def test_a_state_with_a_part_of_another_kind(run: Path, value: object) -> None:
    state = load(CheckpointStore(run / "checkpoints").find("last"))
    for part in ("rng", "stream", "speed", "g_optimizer", "step"):
        with pytest.raises(UserError, match="damaged"):
            build_trainer(parse(from_file(state["config"], "sent")), RunDirectory(run), state={**state, part: value})


def test_resuming_from_a_state_that_does_not_fit(refusal: Refusal, tampered: Callable[[Change], Path]) -> None:
    def change(state: State) -> None:
        moments = state["g_optimizer"]["state"][0]
        moments["exp_avg"] = moments["exp_avg"].flatten()[:1].clone()

    assert "optimizer" in refusal("train", f"resume={tampered(change)}", "trainer.steps=3")
    assert "damaged" in refusal("train", f"resume={tampered(_set('step', None))}", "trainer.steps=3")


@pytest.mark.parametrize("network", [Inception, DINOv2])
@pytest.mark.parametrize("kind", ["zip", "old format", "pickle"])
def test_code_in_weights_is_not_run(
    payload: object, canary: Path, tmp_path: Path, network: Callable[..., object], kind: str
) -> None:
    if network is DINOv2 and importlib.util.find_spec("timm") is None:
        pytest.skip("needs timm")
    path, state = tmp_path / "sent.pth", {"conv.weight": torch.ones(3), "extra": payload}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(UserError, match="could run code; it was not loaded") as error:
        network(weights=str(path), device=torch.device("cpu"))
    assert str(path) in str(error.value)
    assert not canary.exists()
    pickle.loads(path.read_bytes()) if kind == "pickle" else torch.load(path, weights_only=False)
    canary.rmdir()  # it exists: the file is a danger to other readers


def test_a_cache_of_features_is_checked(tmp_path: Path, payload: object, caplog: pytest.LogCaptureFixture) -> None:
    cache, key = FeatureCache(tmp_path), {"n": 5}
    features = torch.rand(5, 3)
    mean, covariance = features.double().mean(dim=0), torch.eye(3).double()
    broken = features.clone().index_fill_(0, torch.tensor([0]), torch.nan)
    # The checksum of each is right.
    for one, two in ((torch.rand(4, 3), mean), (broken, mean), (features, mean + 1)):
        cache.save(key, one, Gaussian(two, covariance, len(one)))
        caplog.clear()
        assert cache.load(key) is None
        assert "are damaged (its" in caplog.text
    torch.save({"key": key, "features": payload}, cache.path(key))
    assert cache.load(key) is None
    cache.save(key, features, Gaussian(mean, covariance, 5))
    assert cache.load(key) is not None
