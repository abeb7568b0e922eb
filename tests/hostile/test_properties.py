"""Random configurations and overrides: each works, or is refused in one line."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from cifargan.cli.options import split_flags
from cifargan.compose import key_of, reject_null_groups
from cifargan.config import parse
from cifargan.errors import UserError
from cifargan.explain import explain
from cifargan.resume import CHOICE, OVERRIDE, overrides_of
from cifargan.schema import from_file

QUICK = settings(
    max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TEXTS = st.text(max_size=12) | st.sampled_from(
    ["${oc.env:HOME}", "${name}", "${", "\\${x}", "???", "null", "os.system", "../x", "\x1b[31m", "\ud800"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
ANYTHING = st.recursive(
    SCALARS | st.binary(max_size=4) | st.complex_numbers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS | st.binary(max_size=4), inner, max_size=3),
    max_leaves=8,
)
GROUPS = ("data", "model", "loss", "regularizer", "augment", "optimizer", "trainer", "evaluator")


@contextlib.contextmanager
def clear() -> Iterator[None]:
    """A block whose every error the command line explains in one line."""
    error: Exception | None = None
    try:
        yield
    except AssertionError:
        raise
    except Exception as raised:
        error = raised
    if error is not None:
        line = explain(error)
        assert line, repr(error)
        assert not line.startswith("out of memory")


@pytest.fixture(scope="session")
def good(composed: Callable[..., DictConfig]) -> dict[str, Any]:
    """A valid configuration."""
    config = composed("model=cdcgan", "data=digits")
    parse(config)
    return OmegaConf.to_container(config)  # type: ignore[return-value]


def places(tree: dict[str, Any], *, groups: bool = False) -> list[tuple[str, ...]]:
    """The paths of all settings and groups of a configuration; with `groups`, of its groups alone."""
    found: list[tuple[str, ...]] = [()] if groups else []
    for key, value in tree.items():
        if isinstance(value, dict):
            found += [(key, *rest) for rest in places(value, groups=groups)]
        if not groups:
            found.append((key,))
    return found


def put(tree: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    tree = copy.deepcopy(tree)
    node = tree
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return tree


@QUICK
@given(data=st.data(), value=TREES)
def test_a_setting_of_any_value(good: dict[str, Any], data: st.DataObject, value: Any) -> None:
    config = put(good, data.draw(st.sampled_from(places(good))), value)
    with clear():
        parse(OmegaConf.create(config))


@QUICK
@given(data=st.data(), name=TEXTS | st.just("_target_"), value=TREES | st.just("os.system"))
def test_a_setting_of_any_name(good: dict[str, Any], data: st.DataObject, name: str, value: Any) -> None:
    place = data.draw(st.sampled_from(places(good, groups=True)))
    with clear():
        parse(OmegaConf.create(put(good, (*place, name), value)))


@QUICK
@given(content=ANYTHING)
def test_any_configuration_in_a_file(content: Any) -> None:
    with clear():
        config = from_file(content, "sent")
        assert "${" not in str(OmegaConf.to_container(config, resolve=False))
        parse(config)


WORDS = st.sampled_from(
    ["", "+", "++", "~", "-", "--", "=", "{", "}", "[", "]", ",", "${", ":", "/", "@", "hydra", "\n", "'", "_target_"]
)
LINES = st.builds("".join, st.lists(WORDS | st.sampled_from([*GROUPS, "seed", "device", "name"]) | TEXTS, max_size=7))


@QUICK
@given(content=st.lists(LINES, max_size=4).map(lambda lines: yaml.safe_dump(lines).encode()) | st.binary(max_size=200))
@example(content=b"[model=../../evil]")
@example(content=b"[hydra.callbacks.x._target_=os.system]")
@example(content=b"[--experimental-rerun=x]")
def test_overrides_that_a_run_keeps(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".hydra").mkdir(exist_ok=True)
    (tmp_path / ".hydra" / "overrides.yaml").write_bytes(content)
    kept = []
    with contextlib.suppress(UserError):
        kept = overrides_of(tmp_path)
    for line in kept:
        match = OVERRIDE.fullmatch(line)
        assert match is not None
        assert "hydra" not in match["key"].lower()
        assert match["key"] not in GROUPS or CHOICE.fullmatch(match["value"] or "null")


@QUICK
@given(arguments=st.lists(LINES, max_size=4))
@example(arguments=["loss=true"])
@example(arguments=["loss=[a]"])
@example(arguments=["loss=nan", "model={a: 1}"])
def test_words_on_the_command_line(arguments: list[str]) -> None:
    with clear():
        _, overrides = split_flags(arguments)
        assert not [line for line in overrides if line.startswith("-")]
        reject_null_groups(overrides)
        assert all("=" not in key_of(line) for line in overrides)
        OverridesParser.create().parse_overrides(overrides)


@pytest.mark.parametrize(
    "value", ["null", "true", "1", "1e30", "nan", "-inf", "[hinge]", "{a:1}", "range(3)", "hinge,1", "int(3)"]
)
def test_a_group_is_set_to_names(value: str) -> None:
    for key in ("+loss", "loss@x", *(["loss"] if value != "{a:1}" else [])):
        with pytest.raises(UserError, match="leave it out, or choose from bce, hinge"):
            reject_null_groups([f"{key}={value}"])
    with pytest.raises(UserError, match="leave it out, or choose from basic, joblib, ray, ray_gpu, slurm, "):
        reject_null_groups([f"hydra/launcher={value}"])
    reject_null_groups(["hydra/launcher=joblib", "loss=hinge", "loss=bce,hinge", "loss=glob(*)", "loss='1'"])
    reject_null_groups(["~loss", "loss=[a", "seed=1"])
