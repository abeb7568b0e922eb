"""The command line of `train`, before Hydra sees it."""

import pytest

from cifargan.compose import key_of, reject_null_groups, split_flags
from cifargan.errors import UserError


@pytest.mark.parametrize(
    ("line", "flags", "overrides"),
    [
        ("a=1 b=2", "", "a=1 b=2"),
        ("a=1 -m b=1,2", "-m", "a=1 b=1,2"),
        ("a=1 --multirun", "--multirun", "a=1"),
        ("a=1 --cfg job b=2", "--cfg job", "a=1 b=2"),
        ("a=1 --cfg=job --resolve", "--cfg job --resolve", "a=1"),
        ("a=1 -c hydra", "-c hydra", "a=1"),
        ("--package trainer -c job", "--package trainer -c job", ""),
        ("a=1 --info b=2", "--info=all", "a=1 b=2"),
        ("a=1 --info=defaults", "--info=defaults", "a=1"),
        ("a=1 --config-dir mine ~b +c=-3", "--config-dir mine", "a=1 ~b +c=-3"),
    ],
)
def test_flags_go_before_overrides(line: str, flags: str, overrides: str) -> None:
    assert split_flags(line.split()) == (flags.split(), overrides.split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a=1 --cgf job", "--cgf: no such option; did you mean --cfg"),
        ("--batch-size=5", "--batch-size: no such option; "),
        ("--cfg", "--cfg : choose from job, hydra, all"),
        ("--cfg all -m", "-m sweeps, --cfg and --info only show"),
        ("--info -m", "-m sweeps, --cfg and --info only show"),
        ("--config-dir", "--config-dir : needs a value"),
    ],
)
def test_flags_that_make_no_sense(line: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        split_flags(line.split())
    assert str(caught.value).startswith(message)


def test_key_of() -> None:
    assert [key_of(text) for text in ("a.b=1", "+a.b=1=2", "++a=x", "~a", "~a=1")] == ["a.b", "a.b", "a", "a", "a"]


def test_a_group_set_to_nothing() -> None:
    reject_null_groups(["trainer.lr_decay_from=null", "model=dcgan", "+x=null"])
    with pytest.raises(UserError, match=r"^loss=null: leave it out, or choose from bce, hinge, hinge_smooth, wasser"):
        reject_null_groups(["model=dcgan", "loss=null"])
