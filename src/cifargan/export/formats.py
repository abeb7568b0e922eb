"""The formats that a generator is exported to: each is a function from a generator and its card to a file's bytes."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from cifargan.errors import UserError
from cifargan.export.network import PlainGenerator, example, traceable
from cifargan.tensor_file import SUFFIX, to_bytes

Card = Mapping[str, Any]
TOLERANCE = 1e-4  # that another runtime may differ by, of images in [-1, 1]
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
BATCHES = (1, 3)  # sizes that an ONNX file is tried with


def safetensors_bytes(plain: PlainGenerator, card: Card) -> bytes:
    """Weights and card, for `cifargan.load_generator` or whoever reads safetensors."""
    return to_bytes(plain.tensors, card)


def onnx_bytes(plain: PlainGenerator, card: Card) -> bytes:
    """An ONNX model: `z` (N, Z) float32 and `y` (N,) int64 to `images` (N, 3, H, W), N as wanted; tried in onnxruntime.

    Raises:
        UserError: a package is missing, or onnxruntime draws other images than PyTorch.
    """
    require_packages()
    network = traceable(plain)
    inputs = example(network, 2)
    # It logs every node that it simplifies.
    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings(action="ignore"):
        exported = torch.onnx.export(
            _program(plain), inputs, dynamo=True, input_names=["z", "y"], output_names=["images"], verbose=False
        )
    if exported is None:
        raise RuntimeError("the exporter gave no program")
    model = exported.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = "cifargan", json.dumps(card)
    content: bytes = model.SerializeToString()
    _try(content, network)
    return content


def require_packages() -> None:
    """Check that what ONNX needs is there, before any work is done.

    Raises:
        UserError: it is not.
    """
    for package in PACKAGES:
        try:
            import_module(package)
        except ImportError as error:
            raise UserError(f"--format onnx needs {package}: pip install 'cifargan[onnx]'") from error


def _try(content: bytes, network: torch.nn.Module) -> None:
    """See that onnxruntime draws what PyTorch draws, for more than one batch size.

    Raises:
        UserError: it does not.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    for n in BATCHES:
        z, y = example(network, n)  # type: ignore[arg-type]
        (images,) = session.run(None, {"z": z.numpy(), "y": y.numpy()})
        difference = (torch.from_numpy(images) - network(z, y)).abs().max().item()
        if not difference <= TOLERANCE:
            raise UserError(
                f"onnxruntime draws images that differ by {difference:.2g} (of 2): nothing was written; the weights may "
                "have diverged, or another version of onnxruntime is needed"
            )


def torch_export_bytes(plain: PlainGenerator, card: Card) -> bytes:
    """A `.pt2` program of torch.export, which needs torch and nothing of cifargan; the card is in `cifargan.json`."""
    buffer = io.BytesIO()
    torch.export.save(_program(plain), buffer, extra_files={"cifargan.json": json.dumps(card)})
    return buffer.getvalue()


def _program(plain: PlainGenerator) -> ExportedProgram:
    """The generator as a graph for any number of images."""
    network = traceable(plain)
    n = Dim("N")
    with warnings.catch_warnings(action="ignore"):
        return torch.export.export(network, example(network, 2), dynamic_shapes={"z": {0: n}, "y": {0: n}})


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        suffix: of its files.
        content: makes the bytes of a file.
        require: checks beforehand that it can.
    """

    suffix: str
    content: Callable[[PlainGenerator, Card], bytes]
    require: Callable[[], None] = lambda: None


FORMATS = {
    "safetensors": Format(SUFFIX, safetensors_bytes),
    "onnx": Format(".onnx", onnx_bytes, require_packages),
    "torch-export": Format(".pt2", torch_export_bytes),
}
