"""Every combination passes the check, and what it refuses."""

from collections.abc import Callable
from itertools import product

import pytest
from omegaconf import DictConfig

from cifargan.build.check import check
from cifargan.cli.errors import options
from cifargan.errors import UserError

MODELS = options("model")
LOSSES = ("bce", "wasserstein", "hinge")
Compose = Callable[..., DictConfig]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_combination_passes_the_check(model: str, composed: Compose) -> None:
    for loss, regularizer, augment in product(LOSSES, options("regularizer"), options("augment")):
        config = composed(f"model={model}", f"loss={loss}", f"regularizer={regularizer}", f"augment={augment}")
        check(config)
        chosen = (config.loss.name, config.regularizer.name, config.augment.name)
        assert chosen == (loss, regularizer, augment)


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


@pytest.mark.parametrize(
    ("model", "head", "needed"),
    [("acbiggan", "linear", "auxiliary or embedding"), ("biggan", "auxiliary", "linear or projection")],
)
def test_a_head_and_its_class_term_go_together(model: str, head: str, needed: str, composed: Compose) -> None:
    with pytest.raises(UserError, match=f"head.name={head} does not go with .* needs {needed}"):
        check(composed("data=digits", f"model={model}", f"model.discriminator.head.name={head}"))
