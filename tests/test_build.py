"""Configuration to objects: every combination, what a loss brings, and what `check` refuses."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import product
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from cifargan import build
from cifargan.build import (
    build_discriminator,
    build_evaluator,
    build_extractor,
    build_generator,
    build_trainer,
    check,
    construct,
    select_device,
    splits_of,
)
from cifargan.cli.errors import options
from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.evaluation import automatic
from cifargan.evaluation.evaluator import NoEvaluator
from cifargan.images import save_png
from cifargan.models.interface import Discriminator, Generator
from cifargan.training.game import Game
from cifargan.training.run_directory import RunDirectory
from cifargan.training.trainer import Trainer

MODELS = options("model")
LOSSES = ("bce", "wasserstein", "hinge")
Compose = Callable[..., DictConfig]
OpenTrainer = Callable[..., AbstractContextManager[Trainer]]


@pytest.fixture(scope="module")
def digits(composed: Compose) -> Callable[[DictConfig], ImageSet]:
    """Loads the digits once for each size."""
    loaded: dict[int, ImageSet] = {}

    def load(node: DictConfig) -> ImageSet:
        return loaded.setdefault(node.image_size, construct(build.SOURCES, node, "data").load())

    return load


@pytest.fixture
def trainer_for(
    composed: Compose,
    narrowed: Callable[[DictConfig], list[str]],
    digits: Callable[[DictConfig], ImageSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> OpenTrainer:
    """A function that opens a narrow trainer on digits from overrides."""
    monkeypatch.setattr(build, "build_data", digits)

    @contextmanager
    def make(*overrides: str) -> Iterator[Trainer]:
        overrides = ("data=digits", "data.splits=[test]", "trainer.batch_size=4", *overrides)
        config = composed(*overrides, *narrowed(composed(*overrides)))
        benchmark = torch.backends.cudnn.benchmark
        trainer = build_trainer(config, RunDirectory(tmp_path))
        with trainer.tracker:
            yield trainer
        torch.backends.cudnn.benchmark = benchmark

    return make


def networks(config: DictConfig) -> tuple[Generator, Discriminator]:
    size = int(config.data.image_size)
    return (
        build_generator(config.model.generator, num_classes=10, image_size=size),
        build_discriminator(config.model.discriminator, num_classes=10, image_size=size),
    )


def normalisers(network: torch.nn.Module) -> tuple[int, int]:
    """How many batch norms a network has, and how many normalised weights."""
    modules = list(network.modules())
    return (
        sum(isinstance(module, _BatchNorm) for module in modules),
        sum(isinstance(module, parametrize.ParametrizationList) for module in modules),
    )


def test_the_models_are_all_there() -> None:
    assert {
        *("dcgan", "dcgan_dense", "dcgan64", "cdcgan", "cdcgan_concat", "sagan", "csagan"),
        *("biggan", "biggan_original", "acbiggan", "reacgan"),
    } <= set(MODELS)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_combination_passes_the_check(model: str, composed: Compose) -> None:
    for loss, regularizer, augment in product(LOSSES, options("regularizer"), options("augment")):
        config = composed(f"model={model}", f"loss={loss}", f"regularizer={regularizer}", f"augment={augment}")
        check(config)
        chosen = (config.loss.name, config.regularizer.name, config.augment.name)
        assert chosen == (loss, regularizer, augment)


@pytest.mark.parametrize(("number", "model", "loss"), [(i, *pair) for i, pair in enumerate(product(MODELS, LOSSES))])
def test_every_model_plays_a_round_under_every_loss(
    number: int, model: str, loss: str, trainer_for: OpenTrainer
) -> None:
    # All four pairs of regularizer and augment come in turn: 4 and 33 have no common divisor.
    regularizer, augment = list(product(("none", "lecam"), ("none", "diffaugment")))[number % 4]
    chosen = (f"model={model}", f"loss={loss}", f"regularizer={regularizer}", f"augment={augment}")
    with trainer_for(*chosen) as trainer:
        game: Game = trainer.game
        before = [p.detach().clone() for p in (*game.generator.parameters(), *game.discriminator.parameters())]
        metrics = {name: float(value) for name, value in game.iterate().items()}
        after = [*game.generator.parameters(), *game.discriminator.parameters()]
    assert all(map(math.isfinite, metrics.values())), metrics
    assert sum(not torch.equal(old, new) for old, new in zip(before, after, strict=True)) > len(before) / 2
    if loss == "wasserstein":
        largest = max(float(p.detach().abs().max()) for p in game.discriminator.parameters())
        assert largest == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("choice", [*(f"model={model}" for model in MODELS), "experiment=biggan"])
def test_wasserstein_brings_what_it_needs(
    choice: str, composed: Compose, narrowed: Callable[[DictConfig], list[str]]
) -> None:
    narrow = narrowed(composed(choice))
    config = composed(choice, "loss=wasserstein", *narrow)
    for player in ("generator", "discriminator"):
        optimizer = config.optimizer[player]
        assert (optimizer.name, optimizer.lr) == ("rmsprop", pytest.approx(5e-5))
    assert config.trainer.d_steps == 5
    g, d = networks(config)
    assert normalisers(d) == (0, 0)
    # The generator is the same as under any other loss.
    own_g, own_d = networks(composed(choice, "loss=bce", *narrow))
    assert normalisers(g) == normalisers(own_g)
    assert g.state_dict().keys() == own_g.state_dict().keys()
    if choice in ("model=dcgan", "experiment=biggan"):
        assert sum(normalisers(own_d)) > 0  # or the comparison above shows nothing


def test_the_command_line_wins_over_what_a_loss_brings(composed: Compose) -> None:
    wasserstein = ("experiment=biggan", "loss=wasserstein")
    assert composed(*wasserstein, "optimizer=adam").optimizer.discriminator.name == "adam"
    assert composed(*wasserstein, "trainer.d_steps=1").trainer.d_steps == 1
    config = composed(*wasserstein, "model.discriminator.spectral_norm=true", "model.discriminator.channels=8")
    _, d = networks(config)
    assert normalisers(d)[1] > 0
    # One rate for both players, unless the second has its own.
    both = composed(*wasserstein, "optimizer.generator.lr=1e-3").optimizer
    assert both.generator.lr == both.discriminator.lr == pytest.approx(1e-3)
    own = composed(*wasserstein, "optimizer.discriminator.lr=1e-3").optimizer
    assert (own.generator.lr, own.discriminator.lr) == (pytest.approx(5e-5), pytest.approx(1e-3))


def test_another_loss_takes_back_what_wasserstein_brought(composed: Compose) -> None:
    config = composed("experiment=csagan_wgan", "loss=bce", "model.discriminator.channels=[8,8,8,8]")
    assert config.optimizer.generator.name == config.optimizer.discriminator.name == "adam"
    assert config.trainer.d_steps == 1
    _, d = networks(config)
    assert normalisers(d)[1] > 0


def test_an_experiment_wins_over_its_model_and_loss(composed: Compose) -> None:
    config = composed("experiment=biggan_original")
    assert (config.trainer.d_steps, config.trainer.batch_size, config.trainer.ema.decay) == (4, 50, 0.9999)
    assert list(config.optimizer.discriminator.betas) == [0.0, 0.999]
    assert composed("experiment=biggan").loss.label_smoothing == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+foo=1", "foo: no such setting"),
        ("+trainer.stpes=1", r"trainer\.stpes: no such setting; did you mean steps"),
        ("+trainer.ema.dcay=1", r"trainer\.ema\.dcay: no such setting; did you mean decay"),
        ("+loss.critic.foo=1", r"loss\.critic\.foo: no such setting; there are batch_norm, spectral_norm"),
        ("+loss.clip=1", r"loss\.clip: no such setting; there are label_smoothing"),
        ("+augment.policy=[color]", r"augment\.policy: no such setting; there are no settings here"),
        ("+evaluator.every=1", r"evaluator\.every: no such setting"),
        ("+optimizer.lr=1", r"optimizer\.lr: no such setting"),
        ("+model.head=linear", r"model\.head: no such setting"),
        ("+model.generator.num_classes=3", r"model\.generator\.num_classes: no such setting"),
        ("+model.discriminator.head.spectral_norm=true", r"head\.spectral_norm: no such setting"),
        ("+model.generator._target_=os.system", r"model\.generator\._target_: no such setting"),
        ("+data._target_=os.system", r"data\._target_: no such setting"),
        ("+_target_=os.system", "_target_: no such setting"),
        ("model.generator.name=os.system", r"model\.generator\.name=os\.system: no such name; choose from biggan,"),
        ("loss.name=wassertein", r"loss\.name=wassertein: no such name; did you mean wasserstein"),
        ("loss.name=[bce]", r"loss\.name=\['bce'\]: no such name"),
        ("~loss.name", r"loss\.name has no value: choose from bce, hinge, wasserstein"),
        ("trainer.ema=0.9", r"trainer\.ema=0\.9: expected a group of settings"),
        ("~trainer", "trainer=null: expected a group of settings"),
        ("trainer.steps=abc", r"trainer\.steps=abc: expected int"),
        ("trainer.steps=null", r"trainer\.steps=null: expected int"),
        ("trainer.steps=0", r"trainer\.steps=0: must be at least 1"),
        ("trainer.loggers=[csv,tensorbord]", r"trainer\.loggers=\[csv,tensorbord\]: .*; did you mean tensorboard"),
        ("trainer.loggers=[[csv]]", r"trainer\.loggers=\[\['csv'\]\]: .*: no such logger"),
        ("trainer.loggers=csv", r"trainer\.loggers=csv: expected list\[str\]"),
        ("optimizer.generator.betas=[0.5]", r"betas=\[0\.5\]: expected tuple\[float, float\]"),
        ("precision=fp8", "precision=fp8: no such choice; choose from auto, fp32, bf16, fp16"),
        ("seed=-1", "seed=-1: must lie between 0 and 4294967295"),
        ("name=null", "name=null: expected str"),
        ("data=folder", r"data\.root has no value: set data\.root="),
        ("device=gpu", "device=gpu: no such device; choose from auto, cuda,"),
        ("device=meta", "device=meta: no such device; choose from auto"),
    ],
)
def test_check_refuses(override: str, message: str, composed: Compose) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check(composed("data=digits", override))
    assert "\n" not in str(caught.value)


def test_check_looks_at_the_settings_of_an_evaluator_without_building_it(composed: Compose) -> None:
    check(composed("evaluator=inception", "evaluator.every=7"))
    with pytest.raises(UserError, match=r"^evaluator\.every=often: expected int"):
        check(composed("evaluator=inception", "evaluator.every=often"))
    with pytest.raises(UserError, match=r"^evaluator\.resolution: no such setting"):
        check(composed("evaluator=inception", "+evaluator.resolution=64"))


def test_no_evaluator(composed: Compose, digits: Callable[[DictConfig], ImageSet]) -> None:
    config = composed("data=digits")
    reference = digits(config.data)
    evaluator = build_evaluator(config.evaluator, images=reference, data=config.data, device=torch.device("cpu"))
    assert isinstance(evaluator, NoEvaluator)


def test_splits_are_those_of_the_data_and_else_what_was_loaded(composed: Compose, tmp_path: Path) -> None:
    data = composed("data=digits").data
    images = build.build_data(data)
    assert [(one.splits, len(one)) for one in splits_of(data, images)] == [(("train",), 1498), (("test",), 299)]
    assert splits_of(data, images)[0] is images
    assert [one.splits for one in splits_of(data, images, ["test"])] == [("test",)]
    for i in range(4):
        path = tmp_path / "pictures" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_png(torch.full((3, 8, 8), i, dtype=torch.uint8), path)
    folder = composed(
        "data=folder", f"data.root={tmp_path / 'pictures'}", "data.image_size=8", f"+data.cache={tmp_path / 'cache'}"
    ).data
    loaded = build.build_data(folder)
    assert splits_of(folder, loaded) == [loaded]


def test_auto_takes_inception_and_else_says_what_it_takes(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    node = composed("data=digits", "evaluator=auto", f"evaluator.weights={tmp_path / 'none.pth'}").evaluator
    extractor = build_extractor(node, device=torch.device("cpu"))
    assert extractor.distance_name == "fd_lite0_64"
    assert "scoring with EfficientNet-Lite0 instead; its distances are no FID" in caplog.text
    assert "none.pth" in caplog.text
    sentinel = object()
    monkeypatch.setattr(automatic, "Inception", lambda **settings: sentinel)
    assert build_extractor(node, device=torch.device("cpu")) is sentinel

    def cannot(**settings: object) -> None:
        raise UserError("it cannot be had")

    monkeypatch.setattr(automatic, "Inception", cannot)
    monkeypatch.setattr(automatic, "EfficientNetLite0", cannot)
    with pytest.raises(UserError, match="evaluator=auto: it cannot be had; and it cannot be had"):
        build_extractor(node, device=torch.device("cpu"))


def test_select_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert select_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert select_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match=r"^device=cuda:2: CUDA devices that torch sees here: 2"):
        select_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert select_device("auto") == select_device("mps") == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert select_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match=r"^device=mps: torch sees no MPS device here"):
        select_device("mps")


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_told_with_its_extra(
    name: str, composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(f"trainer.loggers=[csv,{name}]")
    monkeypatch.setattr(build, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"^trainer\.loggers=\[csv,{name}\]: .*pip install 'cifargan\[{name}\]'"):
        check(config)
    monkeypatch.setattr(build, "find_spec", lambda _: "found")
    check(config)


def test_the_loggers_that_are_chosen_write_and_no_others(trainer_for: OpenTrainer, tmp_path: Path) -> None:
    def written() -> set[str]:
        return {path.name.split(".")[0] for path in tmp_path.iterdir() if path.name != "metrics.jsonl"}

    with trainer_for("model=dcgan", "trainer.loggers=[]") as trainer:
        trainer.tracker.scalars(1, {"a": 1.0})
        trainer.tracker.text("config", "a: 1")
    assert written() == set()
    with trainer_for("model=dcgan") as trainer:
        trainer.tracker.scalars(1, {"a": 1.0})
    assert written() == {"events", "metrics"}


def test_the_seed_decides_the_weights(trainer_for: OpenTrainer) -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.randn(seed)  # whatever was drawn before does not matter
        with trainer_for("model=dcgan", f"seed={seed}") as trainer:
            weights.append(torch.cat([p.flatten() for p in trainer.game.generator.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_checkpoint_that_does_not_fit_leaves_the_run_as_it_is(
    trainer_for: OpenTrainer, composed: Compose, tmp_path: Path
) -> None:
    with trainer_for("model=dcgan") as trainer:
        state = trainer.state()
        config = composed(
            *("data=digits", "data.splits=[test]", "model=dcgan", "trainer.batch_size=4"),
            *("model.generator.base_channels=16", "model.discriminator.base_channels=8"),
        )
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"^the checkpoint is of another generator"):
        build_trainer(config, RunDirectory(tmp_path), state=state)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_other_classes_are_told_as_such_and_not_as_another_generator(
    trainer_for: OpenTrainer, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trainer_for("model=cdcgan") as trainer:
        state = trainer.state()
    monkeypatch.undo()
    config = composed("data=digits", 'data.classes=["0","1"]', "model=cdcgan")
    with pytest.raises(UserError, match=r"^the checkpoint has the classes \['0', '1', '2'"):
        build_trainer(config, RunDirectory(tmp_path), state=state)


@pytest.mark.parametrize(
    ("model", "head", "needed"),
    [("acbiggan", "linear", "auxiliary or embedding"), ("biggan", "auxiliary", "linear or projection")],
)
def test_a_head_and_its_class_term_go_together(model: str, head: str, needed: str, composed: Compose) -> None:
    with pytest.raises(UserError, match=f"head.name={head} does not go with .* needs {needed}"):
        check(composed("data=digits", f"model={model}", f"model.discriminator.head.name={head}"))
