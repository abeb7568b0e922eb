"""DINOv2: the arithmetic of the paper written out, the published weights and wrong ones."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cifargan.errors import UserError
from cifargan.evaluation.extractors import dinov2 as module
from cifargan.evaluation.extractors.dinov2 import DINOv2, pillow_resize, resize_position_embedding

CPU = torch.device("cpu")
HEADS, DIM, BLOCKS = 6, 384, 12  # of the small model

pytestmark = pytest.mark.usefixtures("own_hub")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def official() -> dict[str, Tensor]:
    """Random weights of the small model under the names of the official file, none of them without effect."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, mean: float = 0.0, std: float = 0.05) -> Tensor:
        return mean + std * torch.randn(shape, generator=generator)

    state = {
        "cls_token": draw(1, 1, DIM, std=1.0),
        "pos_embed": draw(1, 1 + 37 * 37, DIM, std=1.0),
        "mask_token": draw(1, DIM),
        "patch_embed.proj.weight": draw(DIM, 3, 14, 14),
        "patch_embed.proj.bias": draw(DIM),
        "norm.weight": draw(DIM, mean=1.0),
        "norm.bias": draw(DIM),
    }
    for block in range(BLOCKS):
        layers = {
            "norm1": (DIM,),
            "attn.qkv": (3 * DIM, DIM),
            "attn.proj": (DIM, DIM),
            "norm2": (DIM,),
            "mlp.fc1": (4 * DIM, DIM),
            "mlp.fc2": (DIM, 4 * DIM),
        }
        for name, shape in layers.items():
            state[f"blocks.{block}.{name}.weight"] = draw(*shape, mean=float("norm" in name))
            state[f"blocks.{block}.{name}.bias"] = draw(shape[0])
        for name in ("ls1", "ls2"):
            state[f"blocks.{block}.{name}.gamma"] = draw(DIM, mean=0.3)
    return state


@pytest.fixture(scope="session")
def weights(official: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dinov2") / "random.pth"
    torch.save(official, path)
    return path


def class_token(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The vision transformer's class token of normalised images (N, 3, 224, 224), step by step."""

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(dim=-1, keepdim=True)
        scaled = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    patches = F.unfold(x, kernel_size=14, stride=14).transpose(1, 2)  # (N, 256, 588)
    patches = patches @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), patches], dim=1)
    x = x + resize_position_embedding(state["pos_embed"], 16)
    for block in (f"blocks.{i}" for i in range(BLOCKS)):
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", x))
        q, k, v = qkv.unflatten(-1, (3, HEADS, DIM // HEADS)).permute(2, 0, 3, 1, 4)  # type: ignore[no-untyped-call]
        attention = (q @ k.transpose(-1, -2) / (DIM // HEADS) ** 0.5).softmax(dim=-1)
        mixed = (attention @ v).transpose(1, 2).flatten(2)
        x = x + state[f"{block}.ls1.gamma"] * linear(f"{block}.attn.proj", mixed)
        hidden = linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", x))
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = x + state[f"{block}.ls2.gamma"] * linear(f"{block}.mlp.fc2", hidden)
    return norm("norm", x)[:, 0]


@pytest.mark.slow  # timm takes seconds to be imported
def test_features_are_the_class_token(
    weights: Path,
    official: dict[str, Tensor],
    images: Tensor,
    global_rng: Callable[[], bytes],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = global_rng()
    extractor = DINOv2(weights=str(weights), model="small", device=CPU)
    assert global_rng() == before
    assert capfd.readouterr() == ("", "")
    features, logits = extractor.extract(images)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    expected = class_token(official, (pillow_resize(images, 224) / 255 - mean) / std)
    assert features.shape == (2, extractor.dim)
    assert features.dtype == torch.float32
    assert logits is None
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert (features[0] - features[1]).norm() > 0.01 * features[0].norm()
    torch.testing.assert_close(extractor.extract(images[1:]).features, features[1:], rtol=1e-4, atol=1e-4)

    content_hash = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert extractor.weights_hash == content_hash
    assert extractor.suffix == f"_dinov2_vits14_{content_hash[:8]}"
    assert (extractor.name, extractor.dim, extractor.has_logits) == ("dinov2", DIM, False)
    assert (extractor.dtype, extractor.resize) == ("float32", "bicubic as Pillow's to 224")
    (message,) = caplog.messages
    assert "random.pth holds other weights than the published DINOv2 vits14 ones" in message
    assert not extractor.network.training
    assert not any(parameter.requires_grad for parameter in extractor.network.parameters())


@pytest.mark.slow
def test_scores_with_the_published_file_have_the_plain_name(
    weights: Path,
    served: SimpleNamespace,
    own_hub: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The random file stands for the published one."""
    (served.root / "weights.pth").symlink_to(weights)
    content_hash = hashlib.sha256(weights.read_bytes()).hexdigest()
    published = replace(module.PUBLISHED["small"], url=f"{served.address}/weights.pth", checksum=content_hash)
    monkeypatch.setitem(module.PUBLISHED, "small", published)
    extractor = DINOv2(model="small", device=CPU)
    assert (own_hub / "weights.pth").is_file()
    assert (extractor.suffix, extractor.weights_hash) == ("_dinov2_vits14", content_hash)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def cubic(distance: float) -> float:
    """Keys' cubic kernel with the parameter -3/4, as torch and OpenCV have it."""
    x, a = abs(distance), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def test_position_embedding_is_resized_as_in_the_official_code() -> None:
    """Each axis as a matrix of kernel values at the places (i + 1/2) 37 / 16.1 - 1/2 of the old grid."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(1, 1 + 37 * 37, 5, generator=generator)
    axis = torch.zeros(16, 37, dtype=torch.float64)
    for i in range(16):
        place = (i + 0.5) * 37 / 16.1 - 0.5
        for tap in range(int(place) - 1, int(place) + 3):
            axis[i, min(max(tap, 0), 36)] += cubic(place - tap)
    grid = embedding[0, 1:].double().reshape(37, 37, 5)
    expected = torch.einsum("ai,bj,ijd->abd", axis, axis, grid).reshape(256, 5)

    resized = resize_position_embedding(embedding, 16)
    assert resized.shape == (1, 257, 5)
    assert torch.equal(resized[:, 0], embedding[:, 0])
    torch.testing.assert_close(resized[0, 1:].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("edge", [32, 224, 300])
def test_resize_equals_that_of_pillow(edge: int) -> None:
    images = torch.randint(0, 256, (1, 3, edge, edge), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()
    resized = pillow_resize(images, 224)[0]
    assert (resized - expected).abs().max() <= 1  # where a sum ends on a half
    assert (resized - expected).abs().mean() < 0.001


@pytest.mark.parametrize("model", ["small", "base"])
@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("no file", "there is no such file"),
        ("damaged", "is damaged"),
        pytest.param("missing", "holds the weights of another network", marks=pytest.mark.slow),
        pytest.param("extra", "holds the weights of another network", marks=pytest.mark.slow),
    ],
)
def test_wrong_weights_are_refused_with_every_way_out(
    official: dict[str, Tensor], tmp_path: Path, case: str, reason: str, model: Literal["small", "base"]
) -> None:
    """`missing` and `extra` differ from the small model in one tensor, and from the base model in all."""
    path = tmp_path / "weights.pth"
    if case == "damaged":
        path.write_bytes(b"PK")
    elif case == "missing":
        torch.save({key: tensor for key, tensor in official.items() if key != "blocks.3.ls2.gamma"}, path)
    elif case == "extra":
        torch.save({**official, "register_tokens": torch.zeros(1, 4, DIM)}, path)
    with pytest.raises(UserError, match=reason) as caught:
        DINOv2(weights=str(path), model=model, device=CPU)
    message = str(caught.value)
    assert "\n" not in message
    for word in (
        str(path),
        "evaluator.weights=PATH",
        "CIFARGAN_DINOV2_WEIGHTS=PATH",
        f"_vit{model[0]}14_pretrain.pth",
        "pip install 'cifargan[offline]'",
        "evaluator=auto",
        "evaluator=none",
    ):
        assert word in message


def test_says_what_to_install(hide: Callable[[str], None]) -> None:
    hide("timm")
    with pytest.raises(UserError, match=r"pip install 'cifargan\[dinov2\]'"):
        DINOv2(device=CPU)
