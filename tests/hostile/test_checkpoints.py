"""Checkpoints and weights from strangers."""

import contextlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch

from cifargan.errors import UserError
from cifargan.evaluation.extractors.dinov2 import DINOv2
from cifargan.evaluation.extractors.inception import Inception
from cifargan.evaluation.extractors.weights import read_state_dict
from cifargan.evaluation.reference import FeatureCache
from cifargan.pickles import load_tensors
from cifargan.runs.checkpoint import State

Refusal = Callable[..., str]
Tampered = Callable[[Callable[[State], Any]], Path]
Within = Callable[[int], contextlib.AbstractContextManager[None]]
COMMANDS = (
    ("sample", "{}", "--device", "cpu"),
    ("evaluate", "{}", "--device", "cpu"),
    ("train", "resume={}", "trainer.steps=2"),
)
OF_THE_CONFIG = COMMANDS[:2]  # those that believe the configuration in a checkpoint


def on(line: tuple[str, ...], run: Path) -> list[str]:
    return [part.format(run) for part in line]


@pytest.mark.parametrize("line", COMMANDS, ids=lambda line: line[0])
@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
def test_code_in_a_checkpoint_is_not_run(
    refusal: Refusal, run: Path, payload: object, line: tuple[str, ...], old: bool
) -> None:
    (checkpoint,) = (run / "checkpoints").glob("step_*.pt")
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "format": 2, "extra": payload}, checkpoint, _use_new_zipfile_serialization=not old)
    assert "damaged" in refusal(*on(line, run))


@pytest.mark.parametrize("network", [Inception, DINOv2])
@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
def test_code_in_weights_is_not_run(
    payload: object, tensors_file: Callable[..., Path], network: Callable[..., object], old: bool
) -> None:
    if network is DINOv2:
        pytest.importorskip("timm")
    path = tensors_file({"conv.weight": torch.ones(3), "extra": payload}, old=old)
    with pytest.raises(UserError, match="holds more than tensors, which could run code; it was not loaded"):
        network(weights=str(path), device=torch.device("cpu"))


@pytest.mark.parametrize("content", [{3: torch.ones(1)}, [torch.ones(1)], {"a": 1}, torch.ones(2)])
def test_weights_that_are_no_state_dict(content: object, tensors_file: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="holds no state dict"):
        read_state_dict(tensors_file(content))


def test_a_safetensors_file_with_an_absurd_header_is_no_weights_file(tmp_path: Path, within: Within) -> None:
    # It is read by nothing here; what matters is that the length it claims is not believed.
    path = tmp_path / "model.safetensors"
    path.write_bytes(
        (2**62).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,9]}}'
    )
    with within(64), pytest.raises(UserError, match="is damaged, or holds more than tensors"):
        read_state_dict(path)


def test_tensors_that_unpack_to_more_than_their_file(tmp_path: Path, within: Within) -> None:
    torch.save({"a": torch.zeros(2**26)}, tmp_path / "plain.pt")  # 256 MiB of zeros
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "bomb.pt", "w") as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    (tmp_path / "plain.pt").unlink()
    assert (tmp_path / "bomb.pt").stat().st_size < 2**20
    with within(64), pytest.raises(ValueError, match="its parts are larger than the file"):
        load_tensors(tmp_path / "bomb.pt")


@pytest.mark.parametrize("part", ["version", ".format_version", "byteorder", ".data/serialization_id"])
def test_what_torch_reads_before_anything_else_is_no_larger_than_the_file(
    part: str, tmp_path: Path, within: Within
) -> None:
    path = tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as plain:
        parts = {name: plain.read(name) for name in plain.namelist() if not name.endswith(part)}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in parts.items():
            bomb.writestr(name, content)
        with bomb.open(f"bomb/{part}", "w") as zeros:
            for _ in range(256):
                zeros.write(bytes(2**20))
    with within(64), pytest.raises(ValueError, match="its parts are larger than the file"):
        load_tensors(path)


def test_two_parts_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "two.pt"
    torch.save({"a": torch.zeros(4)}, path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("two/data.pkl", b"\x80\x02}.")
    with pytest.raises(ValueError, match="two of its parts have one name"):
        load_tensors(path)


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(10**6, 10**6), torch.zeros(4).to_sparse(), torch.zeros(4, device="meta")],
    ids=["one number repeated", "sparse", "nowhere"],
)
def test_tensors_that_are_not_what_is_stored(
    tensor: torch.Tensor, tensors_file: Callable[..., Path], within: Within
) -> None:
    path = tensors_file({"nested": [{"a": tensor}]})
    with within(64), pytest.raises(ValueError, match=r"it holds a tensor that is|it names more than"):
        load_tensors(path)


def _set(path: str, value: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        *parents, last = path.split(".")
        node = state
        for key in parents:
            node = node[key]
        node[last] = value

    return change


def _laughs() -> list[Any]:
    bomb: list[Any] = ["ha"]
    for _ in range(14):
        bomb = [bomb, bomb]
    return bomb


LIES = {
    "environment": (_set("config.data.image_size", "${oc.env:CIFARGAN_SECRET}"), "is not looked up"),
    "environment in the model": (
        _set("config.model.generator.base_channels", "${oc.env:CIFARGAN_SECRET}"),
        "looked up",
    ),
    "a chain to the environment": (
        lambda state: state["config"].update(a="${oc.env:CIFARGAN_SECRET}", name="${a}"),
        "is not looked up",
    ),
    "hydra": (_set("config.name", "${hydra:runtime.cwd}"), "is not looked up"),
    "target": (_set("config.model.generator._target_", "os.system"), "_target_: no such setting"),
    "dotted name": (_set("config.model.generator.name", "os.system"), "no such name"),
    "billion laughs": (_set("config.laughs", _laughs()), "larger than any of ours"),
    "bytes": (_set("config.name", b"x"), "is damaged or no checkpoint"),
    "key": (_set("config.data", {1: 2}), "a key that is no text"),
    "no group": (_set("config.model", 3), "does not say what its networks are|expected a group"),
    "no config": (lambda state: state.pop("config"), "does not say what its networks are"),
    "step": (_set("step", "\x1b[31mred"), "does not say what its networks are"),
    "weights": (lambda state: state.update(generator=3, ema=[1]), "has no ema"),
    "huge network": (_set("config.model.generator.base_channels", 4000), "is of another generator"),
    "huge images": (_set("config.data.image_size", 2**11), "does not say what its networks are"),
    "traversal": (lambda state: state.update(classes=[f"../../{i}" for i in range(10)]), "holds a slash"),
    "absolute": (lambda state: state.update(classes=[f"/tmp/{i}" for i in range(10)]), "holds a slash"),
    "dots": (lambda state: state.update(classes=[".."] * 10), "is no name"),
    "terminal": (lambda state: state.update(classes=[f"\x1b]0;{i}\x07\n" for i in range(10)]), "do not print"),
    "long": (lambda state: state.update(classes=["x" * 300] * 10), "is longer than 128 bytes"),
}


@pytest.mark.parametrize("lie", [*LIES])
def test_what_a_checkpoint_says_of_itself(
    refusal: Refusal, tampered: Tampered, tmp_path: Path, within: Within, lie: str
) -> None:
    change, message = LIES[lie]
    run = tampered(change)
    before = sorted(tmp_path.rglob("*"))
    with within(256):
        line = refusal("sample", str(run), "--device", "cpu", "--format", "grid,png", "--per-class", "1")
    assert any(part in line for part in message.split("|")), line
    assert sorted(tmp_path.rglob("*")) == before


def test_evaluate_looks_nothing_up_either(refusal: Refusal, tampered: Tampered) -> None:
    run = tampered(_set("config.data.root", "${oc.env:CIFARGAN_SECRET}"))
    assert "is not looked up" in refusal("evaluate", str(run), "--device", "cpu")


@pytest.mark.parametrize("part", ["rng", "stream", "switches", "g_optimizer", "step"])
@pytest.mark.parametrize("value", [None, [], "x"], ids=repr)
def test_resuming_from_a_state_with_a_part_of_another_kind(
    refusal: Refusal, tampered: Tampered, part: str, value: object
) -> None:
    assert "none of ours" in refusal("train", f"resume={tampered(_set(part, value))}", "trainer.steps=2")


def test_a_file_that_only_claims_to_be_the_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from cifargan.evaluation.metrics import Gaussian

    cache = FeatureCache(tmp_path)
    key = {"n": 5}
    features, mean, covariance = torch.rand(5, 3), torch.zeros(3).double(), torch.eye(3).double()
    mean = features.double().mean(dim=0)
    lies = {
        "its arrays are none of ours": (torch.rand(4, 3), mean, covariance),
        "its numbers are not finite": (features.clone().index_fill_(0, torch.tensor([0]), torch.nan), mean, covariance),
        "its mean is not that": (features, mean + 1, covariance),
    }
    for message, (one, two, three) in lies.items():
        # With a checksum that fits: whoever writes the file writes that too.
        cache.save(key, one, Gaussian(two, three, len(one)))
        caplog.clear()
        assert cache.load(key) is None
        assert message in caplog.text
    cache.save(key, features, Gaussian(mean, covariance, 5))
    assert cache.load(key) is not None


def test_code_in_the_cache_is_not_run(tmp_path: Path, payload: object) -> None:
    cache = FeatureCache(tmp_path)
    torch.save({"key": {"n": 5}, "features": payload}, cache.path({"n": 5}))
    assert cache.load({"n": 5}) is None


def test_commands_do_work_on_a_run_that_is_honest(
    command: Callable[..., CompletedProcess[str]], tampered: Tampered
) -> None:
    run = tampered(lambda state: None)
    assert command("sample", str(run), "--device", "cpu", "--per-class", "1").returncode == 0
    assert command("train", f"resume={run}", "trainer.steps=2").returncode == 0
