"""`cifargan evaluate`: scores of a run, or of images from elsewhere."""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from omegaconf import OmegaConf

from cifargan.cli.options import Parser, add_generator_options, count, load_chosen, positive, seed
from cifargan.cli.references import extractor_for, outside_reference, with_settings
from cifargan.cli.tables import score_table
from cifargan.config import SPLITS, build_data, splits_of
from cifargan.data.folder import load_images
from cifargan.data.sources import ImageSet
from cifargan.device import select_device
from cifargan.errors import UserError
from cifargan.evaluation.extractors.interface import FeatureExtractor
from cifargan.evaluation.feature_stats import Batches, in_batches, measure
from cifargan.evaluation.records import Protocol, Record, add_to_file
from cifargan.evaluation.reference import Reference, export_statistics, reference_of
from cifargan.evaluation.scores import MANIFOLD_SAMPLES, suspects
from cifargan.evaluation.table import FULL, QUICK, Inputs, Metric, caveats, choose, score
from cifargan.images import labelled_sheet, save_png
from cifargan.loading import find_generator, load_classifier
from cifargan.models.interface import Discriminator
from cifargan.registry import EXTRACTORS, METRICS
from cifargan.runs.directory import RunDirectory
from cifargan.schema import section
from cifargan.untrusted import require_no_links_out

log = logging.getLogger(__name__)

DIFFERENCE = "test_minus_train"
INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The options of `cifargan evaluate`."""
    p = Parser(
        prog="cifargan evaluate",
        usage="cifargan evaluate [RUN] [options]\n       cifargan evaluate --images PATH --reference PATH [options]",
        description="FID, IS, KID, precision, recall, density, coverage, each class, and copies of training images.\n"
        "A table here, everything with its protocol in evaluation.json.",
        epilog="examples:\n"
        "  cifargan evaluate --checkpoint best                    the newest run, 50,000 samples\n"
        "  cifargan evaluate RUN --truncation 0.3,0.5,0.7,1.0     a curve of quality against variety\n"
        "  cifargan evaluate --images samples.npz --reference cifar10:test\n"
        "  cifargan evaluate --images DIR --reference STATS.npz   statistics (mu, sigma) of other tools",
    )
    add_generator_options(p)
    p.add_argument("--images", type=Path, metavar="PATH", help="judge these instead: a folder, a zip or an .npz")
    p.add_argument("--samples", type=count, metavar="N", default=50_000, help="images to draw (default: 50000)")
    p.add_argument(
        "--reference",
        metavar="WHAT",
        help="train, test, both (default); or cifar10, cifar10:test, digits, or a path",
    )
    p.add_argument(
        "--truncation", type=thresholds, metavar="T,T", default=[None], help="thresholds: 0.3,0.5 or 0.3:1.0:0.1"
    )
    p.add_argument("--seed", type=seed, metavar="N", default=1, help="of the latents (default: 1, as in training)")
    p.add_argument(
        "--evaluator",
        choices=EXTRACTORS,
        metavar="NAME",
        help=f"{', '.join(EXTRACTORS)} (default: the run's own)",
    )
    p.add_argument("--extractor-weights", metavar="PATH", help="a copy of its weights")
    p.add_argument("--metrics", metavar="A,B", help=f"these alone: {', '.join(METRICS)}")
    p.add_argument("--quick", action="store_true", help="distances and Inception Score alone")
    p.add_argument("--data-root", metavar="PATH", help="where the real images lie, if not where training found them")
    p.add_argument("--export-stats", type=Path, metavar="FILE", help="write the reference's mu and sigma")
    p.add_argument("--out", type=Path, metavar="DIR", help="folder for pictures (default: RUN/evaluation/...)")
    return p


def thresholds(text: str) -> list[float | None]:
    """Truncation thresholds: a list, a range with its step, or `none`."""
    if text.count(":") == 2:
        first, last, step = (positive(part) for part in text.split(":"))
        return [round(first + i * step, 6) for i in range(int((last - first) / step + 1e-6) + 1)]
    return [None if part == "none" else positive(part) for part in text.split(",")]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is scored, and by what.

    Attributes:
        passes: for each pass its protocol and its images.
        metrics: what is computed, by the keys of `METRICS`.
        references: the real images.
        training: gives the images that may have been copied.
        classes: what the labels count; empty without labels.
        classifier: the run's own discriminator; None without a class head.
        scores: the file of scores.
        pictures: the folder of pictures.
    """

    passes: Sequence[tuple[Protocol, Callable[[], Batches]]]
    metrics: Mapping[str, Metric]
    references: Sequence[Reference]
    training: Callable[[], Reference]
    classes: tuple[str, ...]
    classifier: Discriminator | None
    scores: Path
    pictures: Path


def run(arguments: list[str]) -> int:
    """Score, print the scores, and save them."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = parser().parse_args(arguments)
    device = select_device(options.device)
    extractor, task = (images_task if options.images else run_task)(options, device)
    if options.export_stats:
        export_statistics(options.export_stats, task.references[0], extractor)
        log.info("statistics of %s: %s", task.references[0].card.name, options.export_stats)
    records: list[Record] = []
    try:
        for protocol, batches in task.passes:
            records += judge(task, protocol, batches(), extractor, options, device)
    except KeyboardInterrupt:
        if not records:
            raise
        log.info("stopped: finished passes are saved")
        print(score_table(records))
        return INTERRUPTED
    print(score_table(records))
    if len(task.passes) > 1:
        # matplotlib takes a second to import.
        from cifargan.cli.plots import plot_truncation

        print(plot_truncation(records, extractor, task.pictures / "truncation.png"))
    print(task.scores)
    return 0


def judge(
    task: Task,
    protocol: Protocol,
    batches: Batches,
    extractor: FeatureExtractor,
    options: argparse.Namespace,
    device: torch.device,
) -> list[Record]:
    """All scores of one pass, written down as soon as they are known."""
    at = f"truncation {protocol.truncation:g}" if protocol.truncation else "scoring"
    copying = not options.quick and not options.metrics
    fake = measure(
        batches,
        protocol.n,
        extractor,
        device=device,
        label=at,
        keep_images=1 if options.quick else MANIFOLD_SAMPLES,
        keep_logits=any("fake_logits" in metric.needs for metric in task.metrics.values()),
    )
    for line in caveats(protocol.n, extractor):
        log.warning("%s", line)
    look_at = partial(Inputs, fake, classes=task.classes, classifier=task.classifier, device=device)
    records: list[Record] = []
    for reference in (None, *task.references):
        records += score(look_at(reference), task.metrics, extractor, protocol, strict=bool(options.metrics))
    records += gap(records)
    if copying and (training := task.training()).has_features and training.images is not None:
        inputs = look_at(training)
        records += score(inputs, {"authentic": METRICS["authentic"]}, extractor, protocol)
        rows = suspects(inputs.call(lambda copies: copies), fake.images, training.images, device)
        name = f"nearest_truncation_{protocol.truncation:g}.png" if protocol.truncation else "nearest.png"
        save_png(labelled_sheet(rows, scale=2), task.pictures / name)
        log.info("the samples nearest to training images: %s", task.pictures / name)
    add_to_file(task.scores, records)
    return records


def chosen(options: argparse.Namespace, extractor: FeatureExtractor) -> dict[str, Metric]:
    """The metrics that were asked for, or all that need no naming."""
    if options.metrics:
        return choose(METRICS, options.metrics.split(","), extractor, where=f"--metrics {options.metrics}")
    return {name: METRICS[name] for name in (QUICK if options.quick else (*FULL, "head_hit_rate"))}


def gap(records: Sequence[Record]) -> list[Record]:
    """How much farther the test images are than the training images: copying makes the gap grow."""
    found = {
        record.reference.split: (record, record.reference)
        for record in records
        if record.kind == "fid" and record.reference
    }
    if not set(SPLITS) <= set(found):
        return []
    (test, test_card), (train, train_card) = found["test"], found["train"]
    both = replace(test_card, split=DIFFERENCE, fingerprint=f"{test_card.fingerprint} {train_card.fingerprint}")
    return [replace(test, metric=f"{test.metric}_gap", kind="", value=test.value - train.value, reference=both)]


def run_task(options: argparse.Namespace, device: torch.device) -> tuple[FeatureExtractor, Task]:
    """The generator of a run, against the splits of its training data."""
    source, home = find_generator(options.run, Path(options.root))
    require_no_links_out(home)
    generator = load_chosen(source, options)
    config = generator.config
    extractor = extractor_for(options, section(config, "evaluator"), device)
    metrics = chosen(options, extractor)  # a wrong name is reported before anything is computed
    data = with_settings(section(config, "data"), root=options.data_root)
    look = partial(reference_of, extractor=extractor, device=device, batch_size=options.batch_size)
    images = build_data(data)
    if options.reference in (None, "both", *SPLITS):
        wanted = [options.reference] if options.reference in SPLITS else SPLITS
        sets = splits_of(data, images, wanted)
        if "test" in images.splits:
            log.warning("this run was trained on the test images too: a score against them is no held-out score")
        references = [look(part) for part in sets]
    else:
        references = [outside_reference(options, extractor, device)]

    def training() -> Reference:
        own = [reference for reference in references if reference.card.fingerprint == images.fingerprint]
        return own[0] if own and own[0].has_features else look(images)

    protocols = [
        Protocol(
            n=options.samples,
            subject=str(source),
            step=generator.step,
            checkpoint=options.checkpoint if options.checkpoint in ("last", "best") else "step",
            weights=generator.weights,
            batch_norm=options.batch_norm,
            truncation=threshold,
            seed=options.seed,
            space=extractor.space,
        )
        for threshold in options.truncation
    ]

    def batches(protocol: Protocol) -> Batches:
        return generator.sampler.stream(protocol.n, truncation=protocol.truncation, seed=options.seed)

    name = f"step_{generator.step}-{generator.weights}-{options.batch_norm}{extractor.suffix}"
    return extractor, Task(
        passes=[(protocol, lambda protocol=protocol: batches(protocol)) for protocol in protocols],  # type: ignore[misc]
        metrics=metrics,
        references=references,
        training=training,
        classes=generator.classes if generator.conditional else (),
        classifier=load_classifier(source, checkpoint=options.checkpoint, device=options.device),
        scores=RunDirectory(home).evaluation,
        pictures=options.out or home / "evaluation" / name,
    )


def images_task(options: argparse.Namespace, device: torch.device) -> tuple[FeatureExtractor, Task]:
    """Images from anywhere."""
    if options.run or options.truncation != [None]:
        raise UserError("--images judges images that are there: a RUN and --truncation do not go with it")
    images = load_images(options.images)
    extractor = extractor_for(options, OmegaConf.create({"name": "none"}), device)
    metrics = chosen(options, extractor)
    reference = outside_reference(options, extractor, device)
    protocol = Protocol(n=len(images), subject=str(options.images), space=extractor.space)
    return extractor, Task(
        passes=[(protocol, lambda: shuffled(images, options.batch_size))],
        metrics=metrics,
        references=[reference],
        training=lambda: reference,
        classes=images.classes if len(images.classes) > 1 else (),
        classifier=None,
        scores=(options.out or Path(options.root) / "evaluations" / images.name) / "evaluation.json",
        pictures=options.out or Path(options.root) / "evaluations" / images.name,
    )


def shuffled(images: ImageSet, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The images in an order that does not follow their classes, so that the first are as good as any."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return in_batches(images.images[order], images.labels[order], batch_size)
