"""Networks that several processes train: torch's DistributedDataParallel averages their gradients."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cifargan import parallel

# torch is renaming it, and warns of the old name where it knows the new one.
_SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


def replicated(network: nn.Module, device: torch.device) -> nn.Module:
    """What to call where a network is trained through: itself, or its replica that shares gradients with the others.

    Buffers are not sent around: spectral vectors follow from the weights, and batch norm sums over all processes itself.
    """
    if parallel.world_size() == 1:
        return network
    devices = [device] if device.type == "cuda" else None
    settings: dict[str, Any] = {"device_ids": devices, _SYNC_BUFFERS: False}
    return DistributedDataParallel(network, **settings)


@contextmanager
def shared(network: nn.Module, *, now: bool) -> Iterator[None]:
    """While entered, backward passes through `network` share their gradients at once, or leave that to a later one.

    Args:
        network: what `replicated` gave.
        now: False for all micro-batches of an update but the last.
    """
    if isinstance(network, DistributedDataParallel) and not now:
        with network.no_sync():
            yield
    else:
        yield
