"""The card of an exported generator: all that somebody without the run needs to know."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifargan.errors import UserError
from cifargan.evaluation.records import Value, read_file
from cifargan.export.network import PlainGenerator
from cifargan.loading import TrainedGenerator
from cifargan.runs.directory import RunDirectory
from cifargan.runs.networks import EXPORTED, FORMAT
from cifargan.runs.provenance import versions
from cifargan.tensor_file import checksum

# Where the images of each source come from, and under which licence they are.
ORIGINS = {
    "cifar10": "CIFAR-10 (Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images), "
    "https://www.cs.toronto.edu/~kriz/cifar.html; its authors state no licence and ask for that citation",
    "digits": "Optical Recognition of Handwritten Digits (Alpaydin and Kaynak 1998), UCI Machine Learning Repository, "
    "as it comes with scikit-learn; CC BY 4.0",
    "folder": "images of the user's own; their licence is not known here: ask whoever trained this",
}
RECIPE = ("model", "loss", "optimizer")
HERE = ("root", "cache")  # settings of `data` that mean something on one machine alone
OF_SCORES = ("subject", "step", "weights", "class_name")  # what the card says already, or is no score of the whole


def make_card(trained: TrainedGenerator, plain: PlainGenerator, directory: RunDirectory) -> dict[str, Any]:
    """The card of an exported generator.

    Args:
        trained: the generator and its settings.
        plain: what is exported of it.
        directory: its run, for scores and the data's fingerprint.

    Returns:
        Plain values. `load_generator` reads `config`, `classes`, `step`, `weights`, `speed` and the checksum; the
        rest is for people and other programs.
    """
    about, network = trained.about, plain.network
    conditional = network.num_classes > 0
    size = about.image_size
    return {
        "kind": EXPORTED,
        "format": FORMAT,
        "classes": list(about.classes),
        "conditional": conditional,
        "latent_dim": network.latent_dim,
        "image_size": size,
        "inputs": {
            "z": f"(N, {network.latent_dim}) float32, standard normal, truncated as below",
            "y": f"(N,) int64, {f'the place of the class in `classes`, 0 to {len(about.classes) - 1}' if conditional else 'ignored'}",
        },
        "output": f"(N, 3, {size}, {size}) float32 in [-1, 1], RGB; (x + 1) * 127.5 gives bytes",
        "truncation": {"batch_norm_statistics_made_for": plain.truncation, "advice": plain.advice},
        "step": about.step,
        "checkpoint": trained.path.name,
        "weights": trained.weights,
        "weights_sha256": checksum(plain.tensors),
        "data": {**_fingerprint(directory), "origin": ORIGINS.get(str(about.config.data.get("name")), "not known")},
        "scores": scores(directory, step=about.step, weights=trained.weights),
        "versions": versions(),
        "speed": {key: value for key, value in vars(trained.speed).items() if value is True},
        "config": settings(about.config),
    }


def settings(config: DictConfig) -> dict[str, Any]:
    """What of a run's configuration goes with a generator: its data, its networks, what trained them.

    Raises:
        UserError: a part is missing.
    """
    plain = OmegaConf.to_container(config)
    try:
        if not isinstance(plain, dict):
            raise TypeError("a configuration is a dict")
        kept: dict[str, Any] = {part: plain[part] for part in RECIPE}
        kept["data"] = {key: value for key, value in plain["data"].items() if key not in HERE}
        kept["trainer"] = {key: plain["trainer"][key] for key in ("d_steps", "ema")}
        kept["evaluator"] = {"name": plain["evaluator"]["name"]}
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"the checkpoint does not say how it was trained ({error}): it is damaged or not a checkpoint of cifargan"
        ) from error
    return kept


def scores(directory: RunDirectory, *, step: int, weights: str) -> list[dict[str, Value]]:
    """The scores of these very weights in a run's evaluation.json, each with its protocol.

    Raises:
        UserError: the file is damaged.
    """
    return [
        {key: value for key, value in record.items() if key not in OF_SCORES}
        for record in read_file(directory.evaluation)
        if _is_of(record, step=step, weights=weights)
    ]


def _is_of(record: Mapping[str, Value], *, step: int, weights: str) -> bool:
    return record.get("step") == step and record.get("weights") == weights and record.get("class_name") is None


def _fingerprint(directory: RunDirectory) -> dict[str, Any]:
    """Name, splits and fingerprint of the images, as the run's last start noted them; none where it did not."""
    sessions = directory.read_json("provenance.json").get("sessions")
    newest = sessions[-1] if isinstance(sessions, list) and sessions else {}
    data = newest.get("data") if isinstance(newest, dict) else None
    return {key: data.get(key) for key in ("name", "splits", "fingerprint")} if isinstance(data, dict) else {}
