"""Evaluators: what is scored, under which names, and what is left alone."""

import copy
import io
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.evaluation.evaluator import BATCH, FeatureEvaluator, NoEvaluator
from cifargan.evaluation.features import FeatureExtractor, Features
from cifargan.evaluation.metrics import frechet_distance, inception_score, kernel_distance, mean_and_covariance
from cifargan.models.interface import Generator
from cifargan.sampling import Sampler

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cow")


class Tiny(Generator):
    """Conditional, with batch norm, so that sampling has statistics to settle."""

    def __init__(self) -> None:
        super().__init__(latent_dim=4, num_classes=3, image_size=4)
        self.embed = nn.Embedding(3, 4)
        self.linear = nn.Linear(4, 48)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.linear(z + self.embed(y)).view(-1, 3, 4, 4)))


class Corners(FeatureExtractor):
    """The images' first pixels, which also are its class logits if it has any."""

    distance_name = "fd_corners"
    kernel_name = "kd_corners"

    def __init__(self, *, has_logits: bool = False) -> None:
        self.has_logits = has_logits
        self.seen: list[Tensor] = []

    def _forward(self, images: Tensor) -> Features:
        self.seen.append(images)
        features = images[:, :, 0, :2].flatten(1).float() / 255  # (N, 3, H, W) -> (N, 6)
        return Features(features, features if self.has_logits else None)


def real_images(n: int, *, labels: Tensor | None = None) -> ImageSet:
    """Image i is known by its first pixel, which is i."""
    images = torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    images[:, 0, 0, 0] = torch.arange(n)
    return ImageSet(
        images=images,
        labels=torch.arange(n) % 3 if labels is None else labels,
        classes=CLASSES,
        name="insects",
        splits=("train",),
        flip=False,
    )


def make(
    *, n: int = 60, samples: int = 30, every: int = 10, has_logits: bool = False, labels: Tensor | None = None
) -> FeatureEvaluator:
    return FeatureEvaluator(
        extractor=Corners(has_logits=has_logits),
        reference=real_images(n, labels=labels),
        every=every,
        samples=samples,
        device=CPU,
    )


@pytest.fixture
def tiny() -> Tiny:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Tiny().train()


def sampler(generator: Generator) -> Sampler:
    return Sampler(generator, CLASSES, standing_batches=2, batch_size=8)


def seen(evaluator: FeatureEvaluator) -> Tensor:
    """All images that the extractor has seen."""
    assert isinstance(evaluator.extractor, Corners)
    return torch.cat(evaluator.extractor.seen)


def test_no_evaluator_scores_nothing(tiny: Tiny) -> None:
    assert NoEvaluator().evaluate(sampler(tiny)) == {}


def test_scores_are_those_of_the_samples_against_the_reference(tiny: Tiny) -> None:
    evaluator = make(samples=30, has_logits=True)
    real = evaluator.extractor.extract(seen(evaluator)).features
    fake = evaluator.extractor.extract(sampler(tiny).sample(30, seed=1)).features
    kernel, kernel_deviation = kernel_distance(real, fake)
    score, deviation = inception_score(fake)
    assert evaluator.evaluate(sampler(tiny)) == pytest.approx(
        {
            "score/fd_corners_n30": frechet_distance(*mean_and_covariance(real), *mean_and_covariance(fake)),
            "score/kd_corners_n30": kernel,
            "score/kd_corners_n30_std": kernel_deviation,
            "score/is_n30": score,
            "score/is_n30_std": deviation,
        },
        rel=1e-6,
        abs=1e-9,
    )


@pytest.mark.parametrize(("n", "samples", "suffix"), [(60, 30, "_n30"), (30, 30, "_n30"), (20, 30, "_n30v20")])
def test_names_say_how_many_images(tiny: Tiny, n: int, samples: int, suffix: str) -> None:
    evaluator = make(n=n, samples=samples)
    scores = evaluator.evaluate(sampler(tiny))
    assert list(scores) == [f"score/fd_corners{suffix}", f"score/kd_corners{suffix}", f"score/kd_corners{suffix}_std"]
    assert evaluator.monitor == f"score/fd_corners{suffix}"


def test_reference_is_spread_evenly_over_each_class() -> None:
    ordered = torch.arange(60) // 20
    by_turns = torch.arange(60) % 3
    for labels in (ordered, by_turns):
        picked = seen(make(n=60, samples=12, labels=labels))[:, 0, 0, 0].long()
        assert torch.bincount(labels[picked]).tolist() == [4, 4, 4]
        for label in range(3):
            of_class = (labels == label).nonzero().flatten()
            assert torch.equal(picked[labels[picked] == label], of_class[::5])


def test_reference_is_all_there_is_when_that_is_less() -> None:
    picked = seen(make(n=20, samples=30))[:, 0, 0, 0]
    assert sorted(picked.tolist()) == list(range(20))


def test_real_images_are_looked_at_in_bounded_batches() -> None:
    evaluator = make(n=2 * BATCH + 1, samples=500)
    assert isinstance(evaluator.extractor, Corners)
    assert [len(batch) for batch in evaluator.extractor.seen] == [BATCH, BATCH, 1]


def test_evaluating_changes_nothing(tiny: Tiny, global_rng: Callable[[], bytes]) -> None:
    before, state = global_rng(), copy.deepcopy(tiny.state_dict())
    evaluator = make(has_logits=True)
    first = evaluator.evaluate(sampler(tiny))
    assert evaluator.evaluate(sampler(tiny)) == first
    assert global_rng() == before
    assert tiny.training
    assert all(parameter.requires_grad for parameter in tiny.parameters())
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_white_images_are_as_far_as_the_real_ones_are_from_white(tiny: Tiny) -> None:
    evaluator = make()
    with torch.no_grad():
        tiny.norm.bias.fill_(100)
    mean, covariance = mean_and_covariance(evaluator.extractor.extract(seen(evaluator)).features)
    expected = (1 - mean).square().sum() + covariance.trace()
    assert evaluator.evaluate(sampler(tiny))[evaluator.monitor] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("n", "every", "samples", "has_logits", "message"),
    [
        (60, 0, 30, False, r"evaluator\.every=0: must be at least 1"),
        (60, 10, 1, False, r"evaluator\.samples=1: must be at least 2"),
        (60, 10, 9, True, r"evaluator\.samples=9: must be at least 10 for an Inception Score"),
        (1, 10, 30, False, r"insects has 1 image, and a score needs 2"),
    ],
)
def test_settings_are_checked_before_anything_is_computed(
    n: int, every: int, samples: int, has_logits: bool, message: str
) -> None:
    extractor = Corners(has_logits=has_logits)
    with pytest.raises(UserError, match=message):
        FeatureEvaluator(extractor=extractor, reference=real_images(n), every=every, samples=samples, device=CPU)
    assert extractor.seen == []


def test_least_settings_work(tiny: Tiny) -> None:
    for evaluator in (make(samples=2, n=2, every=1), make(samples=10, has_logits=True)):
        scores = evaluator.evaluate(sampler(tiny))
        assert torch.tensor(list(scores.values())).isfinite().all()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_alone(tiny: Tiny, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    make().evaluate(sampler(tiny))
    shown = stderr.getvalue()
    assert ("real images" in shown, "scoring" in shown) == (terminal, terminal)
