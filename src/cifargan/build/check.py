"""The check of a whole configuration, before anything is built."""

from omegaconf import DictConfig

from cifargan.build.device import select_device
from cifargan.build.parts import EVALUATOR_OWN, EVALUATOR_PROVIDED, HEAD_PROVIDED, evaluator_own
from cifargan.build.settings import (
    GROUPS,
    TRAINER_OTHERS,
    Critic,
    Settings,
    build_freezing,
    build_logging,
    build_schedule,
    build_speed,
    settings,
)
from cifargan.errors import UserError, did_you_mean
from cifargan.evaluation.evaluator import FeatureEvaluator, NoEvaluator
from cifargan.registry import (
    AUGMENTS,
    CLASSIFICATIONS,
    DISCRIMINATORS,
    EXTRACTORS,
    GENERATORS,
    HEADS,
    LOSSES,
    OPTIMIZERS,
    PENALTIES,
    SOURCES,
)
from cifargan.schema import Registry, arguments, lookup, section, without
from cifargan.training.ema import WeightAverage
from cifargan.training.schedule import Schedule

OPTIMIZER_PROVIDED = ("parameters", "fused", "recorded")
OPTIMIZER_PARTS = ("generator", "discriminator")
# A head that has an opinion on classes, and only that, needs a term to learn it by.
HEADS_FOR = {"none": ("linear", "projection"), "cross_entropy": ("auxiliary", "embedding"), "d2dce": ("embedding",)}
TRAINER_KEYS = (*(key for key in Schedule.__dataclass_fields__ if key != "fits_memory"), *TRAINER_OTHERS)
MODEL_PARTS = ("generator", "discriminator", "classification")


def check(config: DictConfig) -> Settings:
    """Check every setting against the code that would receive it, and build nothing.

    Cheap, so that a typo is told before data are loaded.

    Raises:
        UserError: an unknown name or key, or a value of the wrong type.
    """
    for group in GROUPS:
        section(config, group)
    root = settings(config)
    select_device(root.device)
    shape = ("num_classes", "image_size")
    parts: list[tuple[Registry, str, tuple[str, ...], tuple[str, ...]]] = [  # and settings checked elsewhere
        (SOURCES, "data", (), ()),
        (GENERATORS, "model.generator", shape, ()),
        (DISCRIMINATORS, "model.discriminator", (*shape, "head"), ("head",)),
        (HEADS, "model.discriminator.head", HEAD_PROVIDED, ()),
        (CLASSIFICATIONS, "model.classification", (), ()),
        (LOSSES, "loss", (), ("critic",)),
        (PENALTIES, "regularizer", (), ()),
        (AUGMENTS, "augment", (), ()),
        (OPTIMIZERS, "optimizer.generator", OPTIMIZER_PROVIDED, ()),
        (OPTIMIZERS, "optimizer.discriminator", OPTIMIZER_PROVIDED, ()),
        ({"none": NoEvaluator, **EXTRACTORS}, "evaluator", ("device",), EVALUATOR_OWN),
    ]
    for registry, where, provided, elsewhere in parts:
        node = without(section(config, where), *elsewhere)
        arguments(lookup(registry, node, where), node, where, provided=provided)
    for where, known in (("optimizer", OPTIMIZER_PARTS), ("model", MODEL_PARTS), ("trainer", TRAINER_KEYS)):
        for key in map(str, section(config, where)):
            if key not in known:
                hint = did_you_mean(key, known) or f"; there are {', '.join(known)}"
                raise UserError(f"{where}.{key}: no such setting{hint}")
    class_term, head = config.model.classification.name, config.model.discriminator.head.name
    if head not in HEADS_FOR[class_term]:
        raise UserError(
            f"model.discriminator.head.name={head} does not go with model.classification.name={class_term}, which "
            f"needs {' or '.join(HEADS_FOR[class_term])}; model=acbiggan and model=reacgan set both"
        )
    arguments(Critic, section(config, "loss.critic"), "loss.critic")
    build_schedule(config)
    build_speed(config)
    build_logging(config)
    if build_freezing(config).freeze_d and root.init is None:
        raise UserError(
            f"trainer.freeze_d={config.trainer.freeze_d}: freezes what was trained before: set init=RUN too"
        )
    arguments(WeightAverage, section(config, "trainer.ema"), "trainer.ema", provided=["generator"])
    evaluator = NoEvaluator if config.evaluator.name == "none" else FeatureEvaluator
    arguments(evaluator, evaluator_own(config.evaluator), "evaluator", provided=EVALUATOR_PROVIDED)
    return root
