"""Evaluators: what is scored, under which names, and what does not change."""

import copy
import io
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.evaluation.evaluator import SEED, FeatureEvaluator, NoEvaluator
from cifargan.evaluation.extractors.interface import FeatureExtractor
from cifargan.evaluation.feature_stats import StoppedError
from cifargan.evaluation.metrics import InceptionScoreSums, frechet_distance, gaussian, kernel_distance
from cifargan.evaluation.precision_recall import manifold_scores
from cifargan.evaluation.records import FeatureSpace, Protocol, Record, ReferenceCard
from cifargan.evaluation.table import Metric
from cifargan.models.interface import Generator
from cifargan.registry import METRICS
from cifargan.sampling import Sampler

CPU = torch.device("cpu")
Maker = Callable[..., FeatureEvaluator]


@pytest.fixture
def make(corners: Callable[..., FeatureExtractor], insects: Callable[..., ImageSet]) -> Maker:
    def build(*, n: int = 60, has_logits: bool = False, test: int = 0, **settings: Any) -> FeatureEvaluator:
        images = insects(n)
        held_out = [insects(test, split="test", seed=6)] if test else []
        return FeatureEvaluator(
            extractor=corners(has_logits=has_logits),
            images=images,
            final_images=lambda: [images, *held_out],
            table=METRICS,
            **{"every": 10, "samples": 30, "final_samples": 0, "device": CPU, **settings},
        )

    return build


def sampler(generator: Generator, batch_size: int = 8) -> Sampler:
    return Sampler(generator, ("ant", "bee", "cow"), standing_batches=2, batch_size=batch_size)


def values(records: list[Record]) -> dict[str, float]:
    return {record.key: record.value for record in records}


def features(evaluator: FeatureEvaluator, images: Tensor) -> Tensor:
    return evaluator.extractor.extract(images).features


def test_no_evaluator_scores_nothing(tiny: Generator) -> None:
    assert NoEvaluator().evaluate(sampler(tiny), step=1) == []
    assert NoEvaluator().final(sampler(tiny), step=1) == []


def test_scores_are_those_of_the_samples_against_all_real_images(tiny: Generator, make: Maker) -> None:
    evaluator = make(has_logits=True)
    real, fake = (features(evaluator, x) for x in (evaluator.images.images, sampler(tiny).sample(30, seed=SEED)))
    kernel, kernel_deviation = kernel_distance(real, fake, subset_size=30)
    sums = InceptionScoreSums(30, device=CPU)
    sums.update(fake)
    score, deviation = sums.result()
    records = evaluator.evaluate(sampler(tiny), step=7)
    assert values(records) == pytest.approx(
        {
            "is_corners_n30": score,
            "fd_corners_n30_train": frechet_distance(gaussian(real), gaussian(fake)),
            "kd_corners_n30_train": kernel,
        },
        rel=1e-6,
        abs=1e-9,
    )
    spreads = [record.spread for record in records if record.spread is not None]
    assert spreads == pytest.approx([deviation, kernel_deviation], rel=1e-6)
    assert [record.spread_over for record in records] == ["10 splits", None, "100 subsets of 30"]
    assert evaluator.monitor == "fd_corners_n30_train"


def test_every_record_holds_what_decides_it(tiny: Generator, make: Maker) -> None:
    (record, _) = make().evaluate(sampler(tiny), step=7)
    assert record.protocol == Protocol(
        n=30,
        space=FeatureSpace(extractor="corners", weights_hash="c0ffee", resize="none", dtype="float32"),
        subject="training",
        step=7,
        checkpoint="last",
        weights="ema",
        batch_norm="standing",
        seed=SEED,
    )
    assert record.reference == ReferenceCard(name="insects", split="train", n=60, fingerprint=make().images.fingerprint)


def test_full_adds_manifold_and_class_scores(tiny: Generator, make: Maker) -> None:
    evaluator = make(full=True)
    images = sampler(tiny).sample(30, seed=SEED)
    real, fake = features(evaluator, evaluator.images.images), features(evaluator, images)
    found = values(evaluator.evaluate(sampler(tiny), step=1))
    scores = manifold_scores(real, fake, k=5)
    for name in ("precision", "recall", "density", "coverage"):
        assert found[f"{name}_corners_n30_train"] == getattr(scores, name)
    for label, name in enumerate(("ant", "bee", "cow")):
        one = evaluator.images.labels == label
        expected = frechet_distance(gaussian(real[one]), gaussian(fake[label::3]))
        assert found[f"fd_corners_n10_train/{name}"] == pytest.approx(expected, rel=1e-6, abs=1e-9)
        nearest = torch.cdist(fake[label::3], real).argmin(dim=1)
        share = float((evaluator.images.labels[nearest] == label).double().mean())
        assert found[f"class_hit_rate_corners_n10_train/{name}"] == share
    assert len(found) == 2 + 4 + 6


def test_metrics_are_chosen_by_name_and_the_first_is_monitored(
    tiny: Generator, make: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of_them = values(make(full=True, has_logits=True).evaluate(sampler(tiny), step=1))
    evaluator = make(metrics=["recall", "fid"], has_logits=True)
    found = evaluator.evaluate(sampler(tiny), step=1)
    assert values(found) == {key: all_of_them[key] for key in ("recall_corners_n30_train", "fd_corners_n30_train")}
    assert [record.better for record in found] == ["higher", "lower"]
    assert (evaluator.monitor, evaluator.better) == ("recall_corners_n30_train", "higher")
    evaluator = make(metrics=["is"], has_logits=True)
    assert (evaluator.monitor, evaluator.better) == ("is_corners_n30", "higher")
    monkeypatch.setattr("cifargan.evaluation.scores.MANIFOLD_SAMPLES", 20)
    monkeypatch.setattr("cifargan.evaluation.table.MANIFOLD_SAMPLES", 20)
    evaluator = make(metrics=["coverage"])
    assert evaluator.monitor in values(evaluator.evaluate(sampler(tiny), step=1))
    evaluator = make(metrics=["fid", "head_hit_rate"])
    with pytest.raises(UserError, match="metric head_hit_rate: needs classifier, not known of training"):
        evaluator.evaluate(sampler(tiny), step=1)


def test_a_metric_of_the_user(tiny: Generator, make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    def logit_gap(real_features: Tensor, fake_logits: Tensor) -> float:
        return float((fake_logits.mean(dim=0) - real_features.mean(dim=0)).norm())

    def brightness(fake_images: Tensor) -> float:
        return float(fake_images.float().mean())

    monkeypatch.setitem(METRICS, "logit_gap", Metric(logit_gap, better="higher"))
    monkeypatch.setitem(METRICS, "brightness", Metric(brightness, better="lower"))
    evaluator = make(metrics=["logit_gap", "brightness"], has_logits=True)
    real, fake = (features(evaluator, x) for x in (evaluator.images.images, sampler(tiny).sample(30, seed=SEED)))
    found = evaluator.evaluate(sampler(tiny), step=1)
    # The name of a metric without features does not contain their space.
    assert [record.key for record in found] == ["brightness_n30", "logit_gap_corners_n30_train"]
    assert found[1].value == pytest.approx(float((fake.mean(dim=0) - real.mean(dim=0)).norm()), rel=1e-6)
    assert found[0].value == pytest.approx(float(sampler(tiny).sample(30, seed=SEED).float().mean()), rel=1e-6)
    assert (evaluator.monitor, evaluator.better) == ("logit_gap_corners_n30_train", "higher")

    with pytest.raises(UserError, match="metric wrong: nothing gives its argument reel_features; did you mean real_"):
        Metric(wrong, better="lower")


def wrong(reel_features: Tensor) -> float:
    return float(reel_features.mean())


def test_the_final_scores_are_of_more_samples_against_every_split(tiny: Generator, make: Maker) -> None:
    evaluator = make(test=20, final_samples=45)
    assert list(values(evaluator.final(sampler(tiny), step=9))) == [
        "fd_corners_n45_train",
        "kd_corners_n45_train",
        "fd_corners_n45_test",
        "kd_corners_n45_test",
    ]
    assert make(test=20, final_samples=0).final(sampler(tiny), step=9) == []


@pytest.mark.parametrize("batch_size", [1, 7, 30])
def test_scores_do_not_depend_on_the_batch_size_or_on_earlier_calls(
    tiny: Generator, make: Maker, batch_size: int
) -> None:
    expected = values(make(has_logits=True, full=True).evaluate(sampler(tiny, 30), step=1))
    evaluator = make(has_logits=True, full=True, batch_size=batch_size)
    for _ in range(2):
        found = values(evaluator.evaluate(sampler(tiny, batch_size), step=1))
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_evaluating_changes_nothing(tiny: Generator, make: Maker, global_rng: Callable[[], bytes]) -> None:
    before, state = global_rng(), copy.deepcopy(tiny.state_dict())
    evaluator = make(has_logits=True, full=True, final_samples=12)
    first = evaluator.evaluate(sampler(tiny), step=1)
    evaluator.final(sampler(tiny), step=1)
    assert evaluator.evaluate(sampler(tiny), step=1) == first
    assert global_rng() == before
    assert tiny.training
    assert all(parameter.requires_grad for parameter in tiny.parameters())
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_an_evaluation_that_cannot_be_finished_is_one_line(
    tiny: Any, make: Maker, insects: Callable[..., ImageSet]
) -> None:
    evaluator, small = make(final_samples=30), insects(30)
    evaluator.final_images = lambda: [replace(small, images=small.images.repeat(1, 1, 2, 2), fingerprint="")]
    with pytest.raises(UserError, match=r"images are 4x4 and those of insects 8x8"):
        evaluator.final(sampler(tiny), step=1)
    asked = iter([False, True])
    with pytest.raises(StoppedError, match="scoring: stopped after 16 of 30 images"):
        make().evaluate(sampler(tiny), step=1, stop=lambda: next(asked))
    with torch.no_grad():
        tiny.linear.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="images are not finite: it has diverged"):
        make().evaluate(sampler(tiny), step=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, r"evaluator\.every=0: must be at least 1"),
        ({"samples": 1}, r"evaluator\.samples=1: must be at least 2"),
        ({"samples": 9, "has_logits": True}, r"evaluator\.samples=9: must be at least 10 for an Inception Score"),
        ({"samples": 5, "full": True}, r"evaluator\.samples=5: must be at least 6 for precision and recall"),
        ({"final_samples": 1}, r"evaluator\.final_samples=1: must be at least 2, or 0 for no final evaluation"),
        ({"batch_size": 0}, r"evaluator\.batch_size=0: must be at least 1"),
        ({"warn_after": 0}, r"evaluator\.warn_after=0: must be at least 1"),
        ({"stop_after": -1}, r"evaluator\.stop_after=-1: must be at least 1, or null"),
        ({"metrics": ["recal"]}, r"evaluator\.metrics=\[recal\]: there is no metric recal; did you mean recall"),
        ({"metrics": ["fid", "is"]}, r"evaluator\.metrics=\[fid,is\]: is needs class logits, and corners has none"),
        ({"metrics": []}, r"evaluator\.metrics=\[\]: begin with a metric of all classes"),
        ({"metrics": ["class_fid", "fid"]}, r"begin with a metric of all classes"),
        ({"metrics": ["kid", "recall"], "samples": 5}, r"must be at least 6 for precision and recall"),
        ({"n": 1}, r"insects has 1 image, and a score needs 2"),
    ],
)
def test_settings_are_checked_before_anything_is_computed(make: Maker, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make(**settings)
    assert "\n" not in str(error.value)


def test_least_settings_work(tiny: Generator, make: Maker) -> None:
    for evaluator in (make(samples=2, n=2, every=1), make(samples=10, has_logits=True), make(samples=6, full=True)):
        records = evaluator.evaluate(sampler(tiny), step=1)
        assert torch.tensor([record.value for record in records]).isfinite().all()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_alone(
    tiny: Generator, make: Maker, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    make().evaluate(sampler(tiny), step=1)
    shown = stderr.getvalue()
    assert ("features of insects train" in shown, "scoring" in shown) == (terminal, terminal)


def scored(build: Callable[[], FeatureEvaluator], generator: Generator, n_stop: int) -> list[Record] | str:
    """The records of one evaluation; `n_stop` says in which process it is asked to stop."""
    own = dist.get_rank() if dist.is_initialized() else 0
    try:
        return build().evaluate(sampler(generator, batch_size=7), step=1, stop=lambda: own == n_stop)
    except StoppedError as error:
        return str(error)


def test_processes_score_what_one_scores_and_stop_together(
    make: Maker, tiny: Generator, in_processes: Callable[..., list[Any]]
) -> None:
    build = partial(make, has_logits=True, samples=40, full=True)
    one = scored(build, tiny, n_stop=-1)
    assert isinstance(one, list)
    assert {record.metric.partition("_")[0] for record in one} >= {"fd", "kd", "is", "recall"}
    # Seven images a batch: the parts of two are not of one size, and three have two batches each.
    for n in (2, 3):
        assert in_processes(n, scored, build, tiny, -1) == [one] * n
    assert in_processes(2, scored, build, tiny, 1) == ["scoring: stopped after 7 of 20 images"] * 2
