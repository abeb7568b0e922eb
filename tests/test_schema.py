"""The schema is the constructor's signature."""

import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from cifargan.errors import UserError, did_you_mean
from cifargan.schema import Registry, arguments, conf_dir, lookup, section, without


class Thing:
    """One argument of each kind that a setting may have."""

    def __init__(
        self,
        *,
        size: int,
        rate: float = 0.5,
        on: bool = False,
        title: str = "x",
        mode: Literal["fast", "slow"] = "fast",
        other: Literal["a", "b"] | None = None,
        limit: int | None = None,
        sizes: list[int] = [],  # noqa: B006
        names: list[str] = [],  # noqa: B006
        pair: tuple[float, float] = (0.0, 1.0),
        device: object = None,
    ) -> None:
        pass


def check(**settings: Any) -> dict[str, Any]:
    return arguments(Thing, OmegaConf.create({"size": 1, **settings}), "group", provided=["device"])


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("size", 3, 3),
        ("rate", 1, 1.0),
        ("rate", "2e-4", 2e-4),  # YAML 1.1 reads a number without a point as text
        ("on", True, True),
        ("title", 5, "5"),
        ("mode", "slow", "slow"),
        ("other", None, None),
        ("other", "b", "b"),
        ("limit", None, None),
        ("limit", 7, 7),
        ("sizes", [16, 8], [16, 8]),
        ("sizes", [], []),
        ("names", [1, "b"], ["1", "b"]),
        ("pair", [0, 0.999], (0.0, 0.999)),
    ],
)
def test_values_are_converted_to_the_annotated_types(key: str, value: Any, expected: Any) -> None:
    converted = check(**{key: value})
    assert converted == {"size": 1, key: expected}
    assert type(converted[key]) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("size", "abc", "group.size=abc: expected int"),
        ("size", 1.5, "group.size=1.5: expected int"),
        ("size", None, "group.size=null: expected int"),
        ("size", [1], "group.size=[1]: expected int"),
        ("size", {"a": 1}, "group.size={'a': 1}: expected int"),
        ("size", "???", "group.size has no value: set group.size=..."),
        ("rate", "fast", "group.rate=fast: expected float"),
        ("on", "perhaps", "group.on=perhaps: expected bool"),
        ("title", None, "group.title=null: expected str"),
        ("mode", "fasst", "group.mode=fasst: no such choice; did you mean fast?"),
        ("mode", "xyz", "group.mode=xyz: no such choice; choose from fast, slow"),
        ("mode", None, "group.mode=null: expected one of fast, slow"),
        ("other", "z", "group.other=z: no such choice; choose from a, b"),
        ("limit", "none", "group.limit=none: expected int | None"),
        ("sizes", 16, "group.sizes=16: expected list[int]"),
        ("sizes", ["a"], "group.sizes=['a']: expected list[int]"),
        ("pair", [0.5], "group.pair=[0.5]: expected tuple[float, float]"),
        ("pair", 0.5, "group.pair=0.5: expected tuple[float, float]"),
        ("szie", 1, "group.szie: no such setting; did you mean size"),
        ("device", "cpu", "group.device: no such setting; there are size, rate,"),  # the program's own business
        ("_target_", "os.system", "group._target_: no such setting; there are size,"),
    ],
)
def test_what_does_not_fit_is_told_with_its_place(key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        check(**{key: value})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_what_has_no_default_must_be_given() -> None:
    with pytest.raises(UserError, match=r"^group\.size has no value: set group\.size=\.\.\.$"):
        arguments(Thing, OmegaConf.create({"rate": 1.0}), "group", provided=["device"])
    with pytest.raises(UserError, match=r"^size has no value: set size=\.\.\.$"):
        arguments(Thing, OmegaConf.create({}), "", provided=["device"])


def test_name_chooses_and_is_no_setting_unless_it_is_one() -> None:
    def named(*, name: str) -> None:
        pass

    assert check(name="thing") == {"size": 1}
    assert arguments(named, OmegaConf.create({"name": "x"}), "") == {"name": "x"}


def test_variadic_arguments_take_no_settings() -> None:
    def anything(*args: Any, **kwargs: Any) -> None:
        pass

    assert arguments(anything, OmegaConf.create({"name": "none"}), "augment") == {}
    with pytest.raises(UserError, match=r"^augment\.p: no such setting; there are no settings here$"):
        arguments(anything, OmegaConf.create({"p": 1}), "augment")


def test_lookup() -> None:
    registry: Registry = {"thing": Thing, "dict": dict}
    assert lookup(registry, OmegaConf.create({"name": "thing"}), "group") is Thing
    for node, message in (
        ({"name": "thign"}, "group.name=thign: no such name; did you mean thing?"),
        ({"name": "zzz"}, "group.name=zzz: no such name; choose from dict, thing"),
        ({"name": None}, "group.name=null: no such name; choose from dict, thing"),
        ({"name": "???"}, "group.name has no value: choose from dict, thing"),
        ({}, "group.name has no value: choose from dict, thing"),
    ):
        with pytest.raises(UserError) as caught:
            lookup(registry, OmegaConf.create(node), "group")
        assert str(caught.value) == message


@pytest.mark.parametrize("path", ["os.system", "cifargan.models.dcgan.DCGANGenerator", "evil_module.run"])
def test_a_dotted_path_is_a_name_like_any_other_and_is_never_imported(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\ndef run(**_): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="no such name"):
        lookup({"thing": Thing}, OmegaConf.create({"name": path}), "group")
    with pytest.raises(UserError, match=r"group\._target_: no such setting"):
        arguments(Thing, OmegaConf.create({"_target_": path, "size": 1}), "group", provided=["device"])
    assert "evil_module" not in sys.modules
    assert not (tmp_path / "ran").exists()


def test_section() -> None:
    config = OmegaConf.create({"a": {"b": {"c": 1}, "d": 2, "e": [1]}})
    assert section(config, "a.b") == {"c": 1}
    for where in ("a.d", "a.e", "a.x", "x"):
        with pytest.raises(UserError, match=rf"^{where}=.*: expected a group of settings"):
            section(config, where)


def test_without_keeps_what_has_no_value_yet() -> None:
    node = OmegaConf.create({"a": "???", "b": "${c}", "c": 1, "d": 2})
    rest = without(node, "d", "absent")
    assert isinstance(rest, DictConfig)
    assert OmegaConf.to_container(rest) == {"a": "???", "b": 1, "c": 1}
    assert "d" in node


def test_conf_dir_is_the_shipped_one_in_a_wheel_and_the_checkouts_beside_src(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (conf_dir() / "train.yaml").is_file()
    package = tmp_path / "src" / "cifargan"
    package.mkdir(parents=True)
    monkeypatch.setattr("cifargan.schema.__file__", str(package / "config.py"))
    assert conf_dir() == tmp_path / "conf"
    (package / "conf").mkdir()
    assert conf_dir() == package / "conf"


def test_no_shipped_config_names_code() -> None:
    """Neither a dotted path to instantiate nor a resolver that reads the surroundings."""

    def keys(node: Any) -> list[str]:
        if isinstance(node, dict):
            return [str(key) for key in node] + [key for value in node.values() for key in keys(value)]
        return [key for value in node for key in keys(value)] if isinstance(node, list) else []

    for path in conf_dir().rglob("*.yaml"):
        text = path.read_text()
        assert "_target_" not in keys(yaml.safe_load(text)), path
        assert "oc.env" not in text, path


def test_did_you_mean() -> None:
    assert did_you_mean("bigan", ["biggan", "lecam"]) == "; did you mean biggan?"
    assert did_you_mean("stesp", ["steps", "d_steps", "ema"]) == "; did you mean steps or d_steps?"
    assert did_you_mean("abc", ["xyz"]) == did_you_mean("abc", []) == ""
