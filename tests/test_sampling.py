"""Sampling: batch-norm modes, classes in turn, interpolation.

On the CPU the floats of tiny networks differ by 1e-7 with the order of summation. The rounding to 256 levels hides this
for these seeds, so images are compared exactly.
"""

import copy
import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifargan.errors import UserError
from cifargan.images import to_uint8
from cifargan.latents import latents
from cifargan.models.interface import Generator
from cifargan.sampling import BatchNormMode, Sampler
from cifargan.standing_stats import standing_statistics_

CLASSES = ("airplane", "cat", "dog")
MODES: list[BatchNormMode] = ["standing", "running", "batch"]


class Tiny(Generator):
    """A generator with two batch norms, dropout, a shared embedding and a bare table."""

    def __init__(self, *, num_classes: int = 3) -> None:
        super().__init__(latent_dim=6, num_classes=num_classes, image_size=4)
        self.embed = nn.Embedding(max(num_classes, 1), 6)
        self.table = nn.Parameter(torch.randn(max(num_classes, 1), 8))
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8, momentum=0.3)
        self.drop = nn.Dropout(0.5)
        self.image_norm = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = self.norm(self.first(z * (1 + self.embed(y)))) + F.embedding(y, self.table)
        h = self.drop(F.relu(h))[:, :, None, None].expand(-1, -1, 4, 4)
        ramp = torch.linspace(-1, 1, 16).view(4, 4)
        return torch.tanh(self.last(self.image_norm(h * ramp + h.square())))


class OneHot(Generator):
    """Conditional without any table."""

    def __init__(self) -> None:
        super().__init__(latent_dim=2, num_classes=3, image_size=1)
        self.linear = nn.Linear(5, 3)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        x: Tensor = self.linear(torch.cat([z, F.one_hot(y, 3).float()], dim=1))
        return x[:, :, None, None]


def make_tiny(num_classes: int) -> Tiny:
    """A network whose running statistics are neither the initial ones nor those of its samples."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        network = Tiny(num_classes=num_classes)
        for _ in range(3):
            network(2 * torch.randn(50, 6) + 0.5, torch.randint(0, max(num_classes, 1), (50,)))
    return network


@pytest.fixture
def tiny() -> Tiny:
    return make_tiny(3)


@pytest.mark.parametrize("mode", MODES)
def test_same_seed_same_images_for_every_batch_size_and_number(mode: BatchNormMode, tiny: Tiny) -> None:
    whole = Sampler(tiny, CLASSES, batch_norm=mode, batch_size=100).sample(120, seed=3)
    assert whole.shape == (120, 3, 4, 4)
    assert whole.dtype == torch.uint8
    for batch_size in (1, 7):
        sampler = Sampler(tiny, CLASSES, batch_norm=mode, batch_size=batch_size)
        assert torch.equal(sampler.sample(50, seed=3), whole[:50])
        cats = sampler.sample(40, classes="cat", seed=3)
        assert torch.equal(cats, whole[1::3])
        assert torch.equal(sampler.sample(80, classes=["dog", 0], seed=3)[::2], whole[2::3])
    assert not torch.equal(sampler.sample(50, seed=4), whole[:50])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = sampler.sample(50, seed=3)
    assert torch.equal(images, whole[:50])
    images[0] = 0  # an inference tensor would refuse


@pytest.mark.parametrize("mode", MODES)
def test_joined_parts_of_a_stream_are_the_whole_stream(tiny: Tiny, mode: BatchNormMode) -> None:
    draw = Sampler(tiny, CLASSES, batch_norm=mode, batch_size=4).stream
    whole = [images for images, _ in draw(230, seed=3)]
    parts = [[images for images, _ in draw(230, seed=3, part=(k, 3))] for k in range(3)]
    assert all(parts)
    assert torch.equal(torch.cat([images for part in parts for images in part]), torch.cat(whole))


def test_the_three_modes_differ(tiny: Tiny) -> None:
    assert len({Sampler(tiny, CLASSES, batch_norm=mode).sample(30).numpy().tobytes() for mode in MODES}) == 3


def test_labels_take_turns_and_belong_to_the_stream(tiny: Tiny) -> None:
    sampler = Sampler(tiny, CLASSES, batch_size=3)
    assert sampler.labels(5).tolist() == [0, 1, 2, 0, 1]
    assert sampler.labels(3, classes=("dog", "airplane")).tolist() == [2, 0, 2]
    images, labels = zip(*sampler.stream(5, seed=2), strict=True)
    assert torch.equal(torch.cat(labels), sampler.labels(5))
    assert torch.equal(torch.cat(images), sampler.sample(5, seed=2))


def test_running_mode_is_the_network_in_eval_mode(tiny: Tiny) -> None:
    sampler = Sampler(tiny, CLASSES, batch_norm="running")
    z = latents(sampler.labels(9), torch.arange(9) // 3, latent_dim=6, truncation=0.5, seed=5)
    expected = to_uint8(copy.deepcopy(tiny).eval()(z, sampler.labels(9)))
    assert torch.equal(sampler.sample(9, truncation=0.5, seed=5), expected)


def test_standing_mode_settles_for_each_truncation(tiny: Tiny) -> None:
    sampler = Sampler(tiny, CLASSES, batch_norm="standing", standing_batches=4)
    for truncation in (None, 0.3, None):
        settled = copy.deepcopy(tiny)
        standing_statistics_(settled, batches=4, truncation=truncation, seed=0)
        expected = Sampler(settled, CLASSES, batch_norm="running").sample(9, truncation=truncation)
        assert torch.equal(sampler.sample(9, truncation=truncation), expected)


def test_batch_mode_uses_the_statistics_of_its_mixed_batch(tiny: Tiny) -> None:
    labels, indices = torch.arange(3).repeat(33), torch.arange(33).repeat_interleave(3) + 33
    z = latents(labels, indices, latent_dim=6, truncation=None, seed=0)
    network = copy.deepcopy(tiny).train()
    network.drop.eval()
    expected = to_uint8(network(z, labels))  # the second batch of 99
    sampler = Sampler(tiny, CLASSES, batch_norm="batch")
    assert torch.equal(sampler.sample(198)[99:], expected)
    assert torch.equal(sampler.sample(66, classes="cat")[33:], expected[1::3])


def test_standing_statistics_are_the_means_of_batch_statistics(tiny: Tiny) -> None:
    inputs: list[Tensor] = []
    seen: list[Tensor] = []
    tiny.norm.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    tiny.embed.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    standing_statistics_(tiny, batches=5, batch_size=20, seed=0)
    mean, var = tiny.norm.running_mean, tiny.norm.running_var
    assert mean is not None
    assert var is not None
    assert len({tuple(x[0].tolist()) for x in inputs}) == 5  # five different batches
    torch.testing.assert_close(mean, torch.stack([x.mean(0) for x in inputs]).mean(0))
    torch.testing.assert_close(var, torch.stack([x.var(0) for x in inputs]).mean(0))
    assert torch.cat(seen).bincount().tolist() == [34, 33, 33]
    assert (tiny.norm.momentum, tiny.image_norm.momentum) == (0.3, 0.1)
    assert not any(module.training for module in tiny.modules())
    tiny.last = nn.Conv2d(9, 3, 1)
    with pytest.raises(RuntimeError, match="channels"):
        standing_statistics_(tiny, seed=0)
    assert tiny.norm.momentum == 0.3
    assert not tiny.norm.training


@pytest.mark.parametrize("mode", MODES)
def test_the_network_and_the_global_generators_do_not_change(mode: BatchNormMode, tiny: Tiny) -> None:
    state = copy.deepcopy(tiny.state_dict())
    training = [module.training for module in tiny.modules()]
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    sampler = Sampler(tiny, CLASSES, batch_norm=mode)
    sampler.sample(5, truncation=0.7)
    sampler.interpolate("cat", "dog", steps=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]  # noqa: NPY002
    assert all(torch.equal(value, state[name]) for name, value in tiny.state_dict().items())
    assert [module.training for module in tiny.modules()] == training
    assert all(parameter.requires_grad for parameter in tiny.parameters())


@pytest.mark.parametrize("mode", ["standing", "running"])
def test_class_interpolation_begins_and_ends_at_the_pure_classes(mode: BatchNormMode, tiny: Tiny) -> None:
    sampler = Sampler(tiny, CLASSES, batch_norm=mode, batch_size=2)
    frames = sampler.interpolate("cat", "dog", steps=5, rows=3, seed=1, truncation=1.0)
    assert frames.shape == (3, 5, 3, 4, 4)
    assert torch.equal(frames[:, 0], sampler.sample(3, classes="cat", seed=1, truncation=1.0))
    if mode == "standing":
        standing_statistics_(tiny, truncation=1.0, seed=0)
    tiny.eval()
    z = latents(torch.full((3,), 1), torch.arange(3), latent_dim=6, truncation=1.0, seed=1)
    assert torch.equal(frames[:, -1], to_uint8(tiny(z, torch.full((3,), 2))))
    with torch.no_grad():  # half way, by tables that hold the mean of both rows
        for table in (tiny.embed.weight, tiny.table):
            table[0] = (table[1] + table[2]) / 2
    assert torch.equal(frames[:, 2], to_uint8(tiny(z, torch.zeros(3, dtype=torch.int64))))
    assert torch.equal(sampler.sample(3, classes="cat", seed=1, truncation=1.0), frames[:, 0])  # no table stays mixed


def test_class_interpolation_in_batch_mode_uses_the_mixed_batch(tiny: Tiny) -> None:
    sampler = Sampler(tiny, CLASSES, batch_norm="batch")
    frames = sampler.interpolate("cat", "dog", steps=3, rows=35)
    assert torch.equal(frames[:, 0], sampler.sample(35, classes="cat"))
    assert not torch.equal(frames[:, 2], frames[:, 0])


@pytest.mark.parametrize(("num_classes", "a", "b"), [(3, "cat", "cat"), (0, "cat", "dog")])
def test_within_a_class_the_latent_moves(num_classes: int, a: str, b: str) -> None:
    sampler = Sampler(make_tiny(num_classes), CLASSES, batch_norm="running")
    frames = sampler.interpolate(a, b, steps=4, rows=2)
    ends = sampler.sample(4, classes="cat")
    assert torch.equal(frames[:, 0], ends[:2])
    assert torch.equal(frames[:, -1], ends[2:])
    assert not torch.equal(frames[:, 1], frames[:, 2])


def test_an_unconditional_network_ignores_classes() -> None:
    sampler = Sampler(make_tiny(0), CLASSES)
    images = sampler.sample(7)
    assert torch.equal(sampler.sample(7, classes="anything"), images)
    assert sampler.labels(7, classes=["cat", "dog"]).tolist() == [0] * 7
    assert len({tuple(image.flatten().tolist()) for image in images}) == 7


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s: s.sample(1, classes="Aeroplane"), "did you mean airplane"),
        (lambda s: s.sample(1, classes=["cat", 3]), "no class 3; choose from airplane, cat, dog"),
        (lambda s: s.sample(1, classes=-1), "no class -1"),
        (lambda s: s.sample(2, classes=["cat", 1]), "each once"),
        (lambda s: s.sample(2, classes=[]), "at least one"),
        (lambda s: s.sample(0), "at least 1"),
        (lambda s: s.sample(1, truncation=0.0), "truncation="),
        (lambda s: s.sample(1, truncation=-1.0), "truncation="),
        (lambda s: s.sample(1, truncation=math.nan), "truncation="),
        (lambda s: s.sample(1, seed=-1), "seed=-1"),
        (lambda s: s.interpolate("cat", "dog", steps=1), "at least 2"),
    ],
)
def test_wrong_arguments_are_refused(ask: Callable[[Sampler], object], message: str, tiny: Tiny) -> None:
    with pytest.raises(UserError, match=message):
        ask(Sampler(tiny, CLASSES))


def test_a_sampler_with_wrong_settings_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="3 classes, but 2 names"):
        Sampler(tiny, CLASSES[:2])
    with pytest.raises(UserError, match="standing, running, batch"):
        Sampler(tiny, CLASSES, batch_norm="eval")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="batch_size=0"):
        Sampler(tiny, CLASSES, batch_size=0)
    with pytest.raises(UserError, match="no class embedding"):
        Sampler(OneHot(), CLASSES).interpolate("cat", "dog", steps=2)
