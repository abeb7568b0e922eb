"""What a search may vary, read from overrides."""

import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from cifargan.errors import UserError
from cifargan.tuning.space import space_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(1e-5,1e-3)", FloatDistribution(1e-5, 1e-3, log=True)),  # two decades
        ("interval(1e-5,9e-4)", FloatDistribution(1e-5, 9e-4)),
        ("interval(0,1)", FloatDistribution(0, 1)),
        ("interval(-1,1000)", FloatDistribution(-1, 1000)),
        ("tag(log,interval(1,2))", FloatDistribution(1, 2, log=True)),
        ("tag(linear,interval(1e-5,1e-3))", FloatDistribution(1e-5, 1e-3)),
        ("int(interval(4,12))", IntDistribution(4, 12)),
        ("int(interval(1,100))", IntDistribution(1, 100, log=True)),
        ("tag(log,int(interval(4,12)))", IntDistribution(4, 12, log=True)),
        ("range(32,129,32)", IntDistribution(32, 128, step=32)),
        ("range(5,0,-2)", IntDistribution(1, 5, step=2)),
        ("range(0.0,1.0,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("choice(none,lecam)", CategoricalDistribution(["none", "lecam"])),
        ("none,lecam", CategoricalDistribution(["none", "lecam"])),
        ("choice([1,2],'a,b')", CategoricalDistribution(["[1,2]", r"a\,b"])),
        ("true,false", CategoricalDistribution(["True", "False"])),
    ],
)
def test_what_is_searched(text: str, expected: BaseDistribution) -> None:
    space = space_of(["model=dcgan", f"+a.b={text}", "data.classes=[cat,dog]"])
    assert space.varied == {"+a.b": expected}
    assert space.fixed == ("model=dcgan", "data.classes=[cat,dog]")


def test_a_trial_says_what_it_trains() -> None:
    space = space_of(["seed=1", "lr=interval(0,1)", "n=int(interval(1,9))", "loss=bce,hinge"])
    values = {"loss": "hinge", "n": 3, "lr": 0.000123456789}
    assert space.overrides(values) == ["seed=1", "lr=0.000123457", "n=3", "loss=hinge"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["a=1", "b=[1,2]"], "nothing to search: give a setting an interval or a choice"),
        (["a=interval(2,1)"], "a=interval(2,1): an interval goes from a number to a larger one"),
        (["a=interval(0,inf)"], "a=interval(0,inf): an interval goes from a number"),
        (["a=interval(nan,1)"], "a=interval(nan,1): an interval goes from a number"),
        (["a=tag(log,interval(0,1))"], "a=tag(log,interval(0,1)): on a logarithmic scale an interval starts above 0"),
        (["a=tag(lgo,interval(1,2))"], "a=tag(lgo,interval(1,2)): an interval has one of the tags"),
        (["a=tag(log,linear,interval(1,2))"], "a=tag(log,linear,interval(1,2)): an interval has one of the tags"),
        (["a=glob(*)"], "a=glob(*): search in interval(a,b), range(a,b) or choice(a,b,...)"),
        (["a=range(5,1)"], "a=range(5,1): is an empty range"),
        (["a=1", "a=interval(0,1)"], "a is given twice"),
    ],
)
def test_what_cannot_be_searched(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        space_of(overrides)
    assert str(caught.value).startswith(message)
