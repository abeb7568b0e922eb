"""Several processes (ranks) that train one run under torchrun: collectives, shards of a batch, errors met by all ranks.

Every rank draws the random numbers of the whole batch from equal generators and keeps its own rows. So N ranks see the
same images, latents and augmentations as one, and the generators in a checkpoint belong to all ranks. What only one rank
can know (a file, a signal, an error) is sent to the others. With one process, everything here is the identity.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")

TIMEOUT = timedelta(hours=1)  # a rank waits this long for others, which may be downloading data or weights

_alone = False  # inside of `on_all_ranks`


def world_size() -> int:
    """How many processes train this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The index of this process among them."""
    return dist.get_rank() if world_size() > 1 else 0


def local_rank() -> int:
    """The index of this process among those on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if world_size() > 1 else 0


def is_rank_zero() -> bool:
    """Whether this process is the one that writes, prints and decides."""
    return rank() == 0


def num_shards() -> int:
    """How many ranks share the current batch: 1 inside of `on_rank_zero` and `on_all_ranks`."""
    return 1 if _alone else world_size()


def shard(whole: Tensor, *, dim: int = 0) -> Tensor:
    """This rank's rows of a tensor that all ranks hold; each rank has equally many, in one piece."""
    n = whole.shape[dim] // num_shards()
    return whole if num_shards() == 1 else whole.narrow(dim, rank() * n, n)


def draw_shard(draw: Callable[[int], Tensor], n: int, *, dim: int = 0) -> Tensor:
    """Draw random rows for all ranks, in the same order on each, and keep this rank's n rows."""
    return shard(draw(n * num_shards()), dim=dim)


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, through which gradients flow back to each rank, also twice."""
    total: Tensor = _AllReduceSum.apply(x) if num_shards() > 1 else x
    return total


class _AllReduceSum(torch.autograd.Function):
    """The loss of every rank depends on the summand of every rank, so gradients are summed over the ranks as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004 - the signature of a Function
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # noqa: ARG004
        return _AllReduceSum.apply(gradient)


@torch.no_grad()
def all_reduce_mean(x: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, without gradients."""
    return x if num_shards() == 1 else all_reduce_sum(x) / num_shards()


@torch.no_grad()
def all_reduce_min(x: Tensor) -> Tensor:
    """The elementwise minimum of a tensor over all ranks."""
    if num_shards() > 1:
        x = x.clone()
        dist.all_reduce(x, dist.ReduceOp.MIN)
    return x


@torch.no_grad()
def average_gradients(network: nn.Module) -> None:
    """Replace the gradients of a network by their means over all ranks, in one all-reduce."""
    gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
    if num_shards() == 1 or not gradients:
        return
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= num_shards()
    for gradient, mean in zip(gradients, torch.split(flat, [one.numel() for one in gradients]), strict=True):
        gradient.copy_(mean.view(gradient.shape))


def on_rank_zero(work: Callable[[], T]) -> T:
    """Call `work` on rank 0 and return its result on every rank.

    Raises:
        Exception: whatever `work` raised, on every rank.
    """
    answer = [on_all_ranks(lambda: work() if is_rank_zero() else None)]
    if world_size() > 1:
        dist.broadcast_object_list(answer, src=0)
    return answer[0]  # type: ignore[return-value]


def on_all_ranks(work: Callable[[], T]) -> T:
    """Call `work` on every rank, where it must not wait for other ranks.

    Raises:
        Exception: what `work` raised here; where it raised nothing here, the error of the first rank where it did.
    """
    global _alone
    if world_size() == 1:
        return work()
    result, error = None, None
    before, _alone = _alone, True
    try:
        result = work()
    except Exception as own:
        error = own
    finally:
        _alone = before
    errors: list[Any] = [None] * world_size()
    dist.all_gather_object(errors, error)
    if failed := [index for index, other in enumerate(errors) if other is not None]:
        raise mark_met_by_all(error or errors[failed[0]], reporter=failed[0])
    return result  # type: ignore[return-value]


def local_rank_zero_first(work: Callable[[], T]) -> T:
    """Call `work` on one rank of each machine, then on the others: they find what the first one has cached.

    Raises:
        Exception: as `on_all_ranks`.
    """
    first = local_rank() == 0
    result = on_all_ranks(lambda: work() if first else None)
    return result if world_size() == 1 else on_all_ranks(lambda: result if first else work())  # type: ignore[return-value]


def gather(own: T) -> list[T]:
    """What every rank holds, by rank, on rank 0; an empty list on the others."""
    if world_size() == 1:
        return [own]
    everyone: list[Any] | None = [None] * world_size() if is_rank_zero() else None
    dist.gather_object(own, everyone, dst=0)
    return everyone or []


def agree(number: int | None) -> int | None:
    """The largest number that any rank brings up, on every rank; None where no rank has one."""
    return -int(all_reduce_min(torch.tensor(-(number or 0)))) or None


@contextmanager
def process_group() -> Iterator[None]:
    """While entered, this process is one of those that torchrun has started; no effect otherwise, or within another."""
    if not is_launched() or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store, own_rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    # torchrun may keep its store over a restart, with the addresses of dead processes in it.
    store = PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    # torch sends objects through the CPU's backend.
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=size, timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def is_launched() -> bool:
    """Whether torchrun has started this process as one of several."""
    return dist.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1


def mark_met_by_all(error: Exception, *, reporter: int = 0) -> Exception:
    """Note that every rank raises this error, which the rank `reporter` prints."""
    error.met_by_all, error.reported_elsewhere = True, rank() != reporter  # type: ignore[attr-defined]
    return error
