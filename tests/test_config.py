"""Every combination parses, what is refused, and the parts that need data: evaluators and splits."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from cifargan import registry
from cifargan.config import build_data, build_extractor, parse, splits_of
from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.evaluation.evaluator import NoEvaluator
from cifargan.evaluation.extractors import automatic
from cifargan.explain import options
from cifargan.images import save_png
from cifargan.models.interface import DiscriminatorOutput, Head
from cifargan.objectives.base import Judgement, Penalty

MODELS = options("model")
LOSSES = ("bce", "wasserstein", "hinge")
Compose = Callable[..., DictConfig]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_combination_is_parsed(model: str, composed: Compose) -> None:
    for loss, regularizer, augment in product(LOSSES, ("none", "[lecam,cr]"), options("augment")):
        config = composed(f"model={model}", f"loss={loss}", f"regularizer={regularizer}", f"augment={augment}")
        parse(config)
        chosen = (config.loss.name, list(config.regularizer), config.augment.name)
        assert chosen == (loss, [] if regularizer == "none" else ["lecam", "cr"], augment)


@pytest.mark.parametrize(
    ("override", "chosen"),
    [
        ("regularizer=none", {}),
        ("regularizer=[]", {}),
        ("regularizer=lecam", {"lecam": "lecam"}),
        ("regularizer=[r1,lecam]", {"r1": "r1", "lecam": "lecam"}),
        ("regularizer=lecam_early", {"lecam": "lecam"}),
    ],
)
def test_regularizer_is_a_list(override: str, chosen: dict[str, str], composed: Compose) -> None:
    config = composed(override, "model=biggan")
    assert {key: node.name for key, node in config.regularizer.items()} == chosen
    assert list(parse(config).objective().penalties) == list(chosen)


def test_a_setting_of_a_penalty_that_is_not_chosen_is_one_clear_line(composed: Compose) -> None:
    config = composed("regularizer=cr", "+regularizer.lecam.start=5")
    with pytest.raises(UserError, match=r"^regularizer\.lecam\.start is set, but lecam is not chosen") as error:
        parse(config)
    assert "\n" not in str(error.value)
    assert parse(composed("experiment=biggan_fast", "regularizer=none")).objective().penalties.keys() == set()


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
        ("~loss.name", r"loss\.name has no value: choose from bce, hinge, rpgan,"),
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
def test_a_wrong_setting_is_refused(override: str, message: str, composed: Compose) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(composed("data=digits", override))
    assert "\n" not in str(caught.value)


def test_the_settings_of_an_evaluator_are_checked_without_building_it(composed: Compose) -> None:
    parse(composed("evaluator=inception", "evaluator.every=7"))
    with pytest.raises(UserError, match=r"^evaluator\.every=often: expected int"):
        parse(composed("evaluator=inception", "evaluator.every=often"))
    with pytest.raises(UserError, match=r"^evaluator\.resolution: no such setting"):
        parse(composed("evaluator=inception", "+evaluator.resolution=64"))


@pytest.mark.parametrize(
    ("model", "head", "message"),
    [
        ("acbiggan", "linear", "=linear does not give class_logits, which .*=cross_entropy needs: .* auxiliary or emb"),
        ("biggan", "auxiliary", "=auxiliary gives class_logits, which nothing trains: choose .*name=cross_entropy"),
    ],
)
def test_a_head_and_its_class_term_go_together(model: str, head: str, message: str, composed: Compose) -> None:
    with pytest.raises(UserError, match=message):
        parse(composed("data=digits", f"model={model}", f"model.discriminator.head.name={head}"))


class Untyped(Penalty):
    def __init__(self, *, weight=1.0) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.weight = float(weight)

    def forward(self, judgement: Judgement) -> Tensor:
        return self.weight * judgement.real.logits.mean()


class NeedsEmbedding(Untyped):
    needs = ("embedding",)

    def __init__(self) -> None:
        super().__init__()


class BareHead(Head):
    def __init__(self, *, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, max(num_classes, 1))

    def forward(self, h: Tensor, y: Tensor) -> DiscriminatorOutput:
        return DiscriminatorOutput(self.linear(h)[:, 0])


@pytest.mark.parametrize(
    ("kind", "part", "override", "message"),
    [
        ("PENALTIES", Untyped, "regularizer.r1={name: own, weight: 1}", "weight: the argument of Untyped has no type"),
        (
            "PENALTIES",
            nn.Identity,
            "regularizer.r1={name: own}",
            "must be a subclass of cifargan.objectives.base.Penalty",
        ),
        (
            "PENALTIES",
            NeedsEmbedding,
            "regularizer.r1={name: own}",
            "does not give embedding, .*regularizer.r1.name=own",
        ),
        ("HEADS", BareHead, "model.discriminator.head={name: own}", "=own: BareHead must take spectral_norm"),
        ("OPTIMIZERS", torch.nn.Linear, "optimizer.generator={name: own}", "=own: Linear must take parameters"),
    ],
)
def test_an_own_part_that_does_not_fit_is_one_clear_line(
    kind: str, part: type, override: str, message: str, composed: Compose
) -> None:
    config = composed("model=dcgan", "loss=hinge", "data=digits")
    key, _, value = override.partition("=")
    OmegaConf.update(config, key, OmegaConf.create(value), merge=False, force_add=True)
    with patch.dict(getattr(registry, kind), own=part), pytest.raises(UserError, match=message):
        parse(config)


def test_no_evaluator(composed: Compose, digits: Callable[[DictConfig], ImageSet]) -> None:
    config = composed("data=digits")
    assert isinstance(parse(config).evaluator(digits(config.data)), NoEvaluator)


def test_splits_are_those_of_the_data_and_else_what_was_loaded(composed: Compose, tmp_path: Path) -> None:
    data = composed("data=digits").data
    images = build_data(data)
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
    loaded = build_data(folder)
    assert splits_of(folder, loaded) == [loaded]


def test_auto_takes_inception_and_else_says_what_it_takes(
    composed: Compose, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    node = composed("data=digits", "evaluator=auto", f"evaluator.weights={tmp_path / 'none.pth'}").evaluator
    extractor = build_extractor(node, device=torch.device("cpu"))
    assert extractor.suffix == "_lite0_64"
    assert "scoring with EfficientNet-Lite0 instead; its distances are no FID" in caplog.text
    assert "none.pth" in caplog.text
    monkeypatch.setattr(automatic, "Inception", lambda **settings: extractor)
    assert build_extractor(node, device=torch.device("cpu")) is extractor

    def cannot(**settings: object) -> None:
        raise UserError("it cannot be had")

    monkeypatch.setattr(automatic, "Inception", cannot)
    monkeypatch.setattr(automatic, "EfficientNetLite0", cannot)
    with pytest.raises(UserError, match="evaluator=auto: it cannot be had; and it cannot be had"):
        build_extractor(node, device=torch.device("cpu"))


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_refused_with_its_extra(
    name: str, composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(f"trainer.loggers=[csv,{name}]")
    monkeypatch.setattr("cifargan.settings.find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"^trainer\.loggers=\[csv,{name}\]: .*pip install 'cifargan\[{name}\]'"):
        parse(config)
    monkeypatch.setattr("cifargan.settings.find_spec", lambda _: "found")
    parse(config)
