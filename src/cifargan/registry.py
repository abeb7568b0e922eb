"""The registries: what a name in a configuration stands for. Names become classes through them, and nowhere else.

A registry and never a dotted path: a config or a checkpoint that somebody was sent must not be able to run code.
"""

from cifargan.data.cifar10 import CIFAR10
from cifargan.data.digits import Digits
from cifargan.data.folder import Folder
from cifargan.evaluation.extractors.automatic import automatic
from cifargan.evaluation.extractors.dinov2 import DINOv2
from cifargan.evaluation.extractors.efficientnet import EfficientNetLite0
from cifargan.evaluation.extractors.inception import Inception
from cifargan.evaluation.scores import (
    authentic,
    class_fid,
    class_hit_rate,
    coverage,
    density,
    fid,
    head_hit_rate,
    inception_score,
    kid,
    precision,
    recall,
)
from cifargan.evaluation.table import Metric
from cifargan.models.biggan import BigGANDiscriminator, BigGANGenerator
from cifargan.models.dcgan import DCGANDiscriminator, DCGANGenerator
from cifargan.models.dense import DenseDiscriminator, DenseGenerator
from cifargan.models.heads import AuxiliaryHead, EmbeddingHead, LinearHead, ProjectionHead
from cifargan.objectives.augment import DiffAugment
from cifargan.objectives.base import Augment
from cifargan.objectives.classification import D2DCE, CrossEntropy, NoClassification
from cifargan.objectives.losses import BCELoss, HingeLoss, RelativisticLoss, WassersteinGPLoss, WassersteinLoss
from cifargan.objectives.penalties import R1, R2, Consistency, LeCam
from cifargan.schema import Registry
from cifargan.training.loggers import CSVTable, TensorBoard
from cifargan.training.optimizers import adam, rmsprop
from cifargan.training.services import MLflow, WandB

SOURCES: Registry = {"cifar10": CIFAR10, "folder": Folder, "digits": Digits}
GENERATORS: Registry = {"dcgan": DCGANGenerator, "dense": DenseGenerator, "biggan": BigGANGenerator}
DISCRIMINATORS: Registry = {"dcgan": DCGANDiscriminator, "dense": DenseDiscriminator, "biggan": BigGANDiscriminator}
HEADS: Registry = {
    "linear": LinearHead,
    "projection": ProjectionHead,
    "auxiliary": AuxiliaryHead,
    "embedding": EmbeddingHead,
}
CLASSIFICATIONS: Registry = {"none": NoClassification, "cross_entropy": CrossEntropy, "d2dce": D2DCE}
LOSSES: Registry = {
    "bce": BCELoss,
    "hinge": HingeLoss,
    "wasserstein": WassersteinLoss,
    "wgan_gp": WassersteinGPLoss,
    "rpgan": RelativisticLoss,
}
PENALTIES: Registry = {"lecam": LeCam, "cr": Consistency, "r1": R1, "r2": R2}
AUGMENTS: Registry = {"none": Augment, "diffaugment": DiffAugment}
OPTIMIZERS: Registry = {"adam": adam, "rmsprop": rmsprop}
EXTRACTORS: Registry = {
    "inception": Inception,
    "efficientnet_lite0": EfficientNetLite0,
    "dinov2": DINOv2,
    "auto": automatic,
}
METRICS: dict[str, Metric] = {
    "fid": Metric(fid, better="lower", elsewhere="fd"),
    "kid": Metric(kid, better="lower", elsewhere="kd"),
    "is": Metric(inception_score, better="higher"),
    "precision": Metric(precision, better="higher"),
    "recall": Metric(recall, better="higher"),
    "density": Metric(density, better="higher"),
    "coverage": Metric(coverage, better="higher"),
    "class_fid": Metric(class_fid, better="lower", name="fid", elsewhere="fd"),
    "class_hit_rate": Metric(class_hit_rate, better="higher"),
    "head_hit_rate": Metric(head_hit_rate, better="higher"),
    "authentic": Metric(authentic, better="higher"),
}
LOGGERS: Registry = {"tensorboard": TensorBoard, "csv": CSVTable, "wandb": WandB, "mlflow": MLflow}
LOGGER_EXTRAS = ("wandb", "mlflow")
REGISTRIES = (
    *(SOURCES, GENERATORS, DISCRIMINATORS, HEADS, CLASSIFICATIONS, LOSSES, PENALTIES),
    *(AUGMENTS, OPTIMIZERS, EXTRACTORS, LOGGERS),
)


def metric_of(score: str) -> Metric | None:
    """The metric that a score's name begins with (`fd_lite0_64_n2000_train`), the longest of several; None: none."""
    names: dict[str, Metric] = {}
    for key, metric in METRICS.items():
        for name in (metric.name or key, metric.elsewhere):
            names.setdefault(name, metric)
    fitting = [name for name in names if name and f"{score}_".startswith(f"{name}_")]
    return names[max(fitting, key=len)] if fitting else None


def own_modules() -> set[str]:
    """The names of the modules outside this package that have registered a part."""
    return {
        module
        for registry in REGISTRIES
        for part in registry.values()
        if not (module := getattr(part, "__module__", "cifargan")).startswith("cifargan.")
    }
