"""Training batches."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cifargan.data.sources import ImageSet
from cifargan.data.stream import ImageStream
from cifargan.errors import UserError
from cifargan.images import to_float

CPU = torch.device("cpu")


def image_set(count: int, *, flip: bool) -> ImageSet:
    """Image i has i in its left half and i + 100 in its right half, and label i % 5."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 4, 4)
    images[:, :, :, 2:] += 100
    labels = torch.arange(count) % 5
    return ImageSet(images=images, labels=labels, classes=tuple("abcde"), name="n", splits=("all",), flip=flip)


def stream(count: int = 10, batch_size: int = 4, *, flip: bool = True, seed: int = 0) -> ImageStream:
    return ImageStream(images=image_set(count, flip=flip), batch_size=batch_size, device=CPU, seed=seed)


def numbers(x: Tensor) -> list[int]:
    """Which images these are, mirrored or not."""
    return ((x.amin(dim=(1, 2, 3)) + 1) * 127.5).round().int().tolist()


@pytest.mark.parametrize("batch_size", [1, 4, 10, 23])
def test_each_image_comes_once_an_epoch_in_batches_of_one_size(batch_size: int) -> None:
    batches = stream(count=10, batch_size=batch_size)
    seen: list[int] = []
    while len(seen) < 50:
        x, y = batches.next()
        assert x.shape == (batch_size, 3, 4, 4)
        assert [number % 5 for number in numbers(x)] == y.tolist()
        seen += numbers(x)
        assert (batches.images_seen, batches.epoch) == (len(seen), len(seen) // 10)
    epochs = [seen[start : start + 10] for start in range(0, 50, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5  # shuffled again


def test_the_order_depends_on_the_seed() -> None:
    one, same, other = stream(seed=1), stream(seed=1), stream(seed=2)
    for _ in range(5):
        torch.testing.assert_close(one.next(), same.next(), rtol=0, atol=0)
    assert numbers(one.next()[0]) != numbers(other.next()[0])


def test_half_of_the_images_are_mirrored_if_they_may_be() -> None:
    images = image_set(100, flip=True)
    batches = ImageStream(images=images, batch_size=2000, device=CPU, seed=0)
    x, _ = batches.next()
    upright = to_float(images.images)[numbers(x)]
    as_is = (x == upright).flatten(1).all(1)
    mirrored = (x == upright.flip(-1)).flatten(1).all(1)
    assert torch.equal(as_is, ~mirrored)
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.06)  # five standard deviations
    x, _ = stream(count=50, batch_size=50, flip=False).next()
    assert bool((x[..., 0] < x[..., -1]).all())


@pytest.mark.parametrize("batches_before", [0, 2, 3, 5])  # 5 batches of 4 end with an epoch of 10
def test_a_restored_stream_continues_bit_for_bit(
    batches_before: int, differences: Callable[[object, object], list[str]]
) -> None:
    straight = stream(seed=3)
    for _ in range(batches_before):
        straight.next()
    state = straight.state_dict()
    saved = copy.deepcopy(state)
    resumed = stream(seed=99)
    resumed.next()
    resumed.load_state_dict(state)
    assert resumed.images_seen == 4 * batches_before
    for _ in range(7):
        torch.testing.assert_close(resumed.next(), straight.next(), rtol=0, atol=0)
    assert differences(state, saved) == []  # it does not change with the stream


@pytest.mark.parametrize("batches", [1, 3, 9])  # within an epoch of 10, across one end, across many
def test_prepared_batches_are_those_drawn_one_by_one(batches: int) -> None:
    one_by_one, prepared = stream(), stream()
    for _ in range(4):
        prepared.advance(batches)
        for _ in range(batches):
            torch.testing.assert_close(prepared.take(), one_by_one.next(), rtol=0, atol=0)
        assert prepared.images_seen == one_by_one.images_seen


def test_other_images_and_other_devices_are_refused() -> None:
    state = stream(count=10).state_dict()
    with pytest.raises(UserError, match="training images are not those"):
        stream(count=11).load_state_dict(state)
    with pytest.raises(UserError, match="cuda"):
        stream(count=10).load_state_dict({**state, "device": "cuda"})
    with pytest.raises(UserError, match="batch_size"):
        stream(batch_size=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_batch_waits_for_the_device() -> None:
    device = torch.device("cuda")
    batches = ImageStream(images=image_set(10, flip=True), batch_size=4, device=device, seed=0)
    for _ in range(5):
        batches.next()
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn = [batches.next()[0] for _ in range(20)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8, device=device)).tolist() == [-1.0, 1.0]
    assert sorted(numbers(torch.cat(drawn)))[::8] == list(range(10))  # 2 epochs, then 8
