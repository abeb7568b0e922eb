"""Exported generators give the images of the PyTorch network."""

import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch

from cifargan.errors import UserError
from cifargan.export import formats
from cifargan.export.formats import onnx_bytes, torch_export_bytes
from cifargan.export.network import PlainGenerator, example, plain_generator
from cifargan.models.biggan import BigGANGenerator
from cifargan.models.dcgan import DCGANGenerator
from cifargan.models.interface import Generator
from cifargan.models.resampling import fold_
from cifargan.standing_stats import standing_statistics_
from cifargan.training.state import use_tf32

CPU = torch.device("cpu")


SMALL = partial(DCGANGenerator, image_size=16, latent_dim=8, base_channels=4)
NETWORKS: dict[str, Callable[[], Generator]] = {
    "dcgan": partial(SMALL, num_classes=10),
    "cdcgan": partial(SMALL, num_classes=3, conditional=True, spectral_norm=True),
    "biggan": partial(BigGANGenerator, num_classes=3, image_size=8, latent_dim=4, channels=8, attention=[8]),
}


def make(name: str) -> Generator:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    for parameter in network.parameters():
        # A loss of a gamma, a gain or a bias would not show at its initial value.
        parameter.data += 0.3 * torch.randn_like(parameter)
    return network


@pytest.fixture(autouse=True)
def as_training_leaves_it() -> Iterator[None]:
    """Set the precision of convolutions, as training does."""
    before = torch.backends.cudnn.allow_tf32
    use_tf32(False)  # what a CPU run says
    yield
    use_tf32(before)


def plain(name: str) -> PlainGenerator:
    return plain_generator(make(name), truncation=None, device=CPU)


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_changes_no_bit(name: str) -> None:
    network = make(name)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    folded = plain_generator(network, truncation=0.5, device=CPU)
    assert all(torch.equal(before[key], tensor) for key, tensor in network.state_dict().items())
    assert not any("parametrizations" in key for key in folded.tensors)
    standing_statistics_(network, truncation=0.5, seed=0)
    z, y = example(network, 5)
    assert torch.equal(folded.network(z, y), network(z, y))
    assert "|z| <= 0.5" in folded.advice


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_draws_the_same(name: str) -> None:
    runtime: Any = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made = plain(name)
    fold_(made.network, up=True, down=True)  # the form that training may have used
    content = onnx_bytes(made, {"step": 7})
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    inputs = {node.name: (node.shape[1:], node.type) for node in session.get_inputs()}
    assert inputs == {"z": ([made.network.latent_dim], "tensor(float)"), "y": ([], "tensor(int64)")}
    assert json.loads(session.get_modelmeta().custom_metadata_map["cifargan"]) == {"step": 7}
    seen = []
    for n in (1, 7):
        z, y = example(made.network, n)
        (images,) = session.run(None, {"z": z.numpy(), "y": y.numpy()})
        assert images.shape == (n, 3, made.network.image_size, made.network.image_size)
        assert (torch.from_numpy(images) - made.network(z, y)).abs().max() < 1e-4
        seen.append(images)
    assert seen[-1].std() > 0.05  # they are not constant


@pytest.mark.slow
def test_a_torch_program_draws_the_same() -> None:
    made = plain("biggan")
    extra = {"cifargan.json": ""}
    program = torch.export.load(io.BytesIO(torch_export_bytes(made, {"step": 7})), extra_files=extra).module()
    assert json.loads(extra["cifargan.json"]) == {"step": 7}
    for n in (1, 5):
        inputs = example(made.network, n)
        torch.testing.assert_close(program(*inputs), made.network(*inputs), atol=1e-6, rtol=0)


@pytest.mark.parametrize("package", formats.PACKAGES)
def test_a_missing_package_names_its_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> object:
        if name == package:
            raise ImportError(name)
        return import_module("json")

    monkeypatch.setattr(formats, "import_module", without)
    with pytest.raises(UserError, match=rf"^--format onnx needs {package}: pip install 'cifargan\[onnx\]'$"):
        formats.require_packages()
