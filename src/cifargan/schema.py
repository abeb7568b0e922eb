"""Where the configuration lives, and the check that it says only what the code understands.

There is no second description of the settings: the schema of a group is the signature of the constructor that the
group's `name` stands for. A new argument with a type and a default is a new setting.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, field, make_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifargan.errors import UserError, did_you_mean
from cifargan.untrusted import readable

Registry = dict[str, Callable[..., Any]]  # from the `name` in a config; a program of one's own may add to it
MISSING_VALUE = "???"  # OmegaConf's mark of a setting that must be given
REFERENCE = "${"  # what OmegaConf would look up: another setting, or through a resolver the environment
MAX_DEPTH = 16
MAX_VALUES = 10_000
MAX_TEXT = 10_000  # characters of one value


def conf_dir() -> Path:
    """The absolute path of the shipped configs: inside the wheel, or beside `src/` in a checkout."""
    package = Path(__file__).resolve().parent
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parent.parent / "conf"


def from_file(content: Any, where: str) -> DictConfig:
    """A configuration that was read from an untrusted file: nothing in it is looked up.

    Args:
        content: what the file holds.
        where: the file, for the error message.

    Returns:
        The same as a node. A run writes its configuration resolved, so it holds no reference.

    Raises:
        UserError: it is no dict of plain values, refers to something, or is larger than any configuration.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where} holds no configuration: it is damaged, or not of cifargan")
    left = MAX_VALUES

    def walk(value: Any, depth: int) -> None:
        nonlocal left
        # Counted once for every time it is referred to: lists of lists of one list are small in a file alone.
        left -= 1
        if left < 0 or depth > MAX_DEPTH or (isinstance(value, str) and len(value) > MAX_TEXT):
            raise UserError(f"{where} holds a configuration larger than any of ours: it was not read")
        if isinstance(value, dict):
            for key, child in value.items():
                if not isinstance(key, str):
                    raise UserError(f"{where} holds a configuration with a key that is no text: {readable(repr(key))}")
                walk(key, depth)
                walk(child, depth + 1)
        elif isinstance(value, list | tuple):
            for child in value:
                walk(child, depth + 1)
        elif isinstance(value, str):
            if REFERENCE in value:
                raise UserError(f"{where} holds {readable(value)}, which is not looked up: write the value itself")
        elif value is not None and not isinstance(value, bool | int | float):
            raise UserError(f"{where} holds a configuration with {readable(repr(value))}, which is no plain value")

    walk(content, 0)
    return OmegaConf.create(content)


def lookup(registry: Registry, node: DictConfig, where: str, kind: type[Any] | None = None) -> Callable[..., Any]:
    """The constructor behind the `name` of a config node.

    Args:
        registry: what the name is looked up in.
        node: holds the name.
        where: the node's place in the configuration, for the error message.
        kind: the base class of what it names; None where functions are registered too.

    Raises:
        UserError: the node has no name, or one that the registry does not know, or that stands for something else.
    """
    name = shown(_entries(node).get("name", MISSING_VALUE))
    choices = ", ".join(sorted(registry))
    if name == MISSING_VALUE:
        raise UserError(f"{where}.name has no value: choose from {choices}")
    if name not in registry:
        raise UserError(
            f"{where}.name={name}: no such name{did_you_mean(name, registry) or f'; choose from {choices}'}"
        )
    found = registry[name]
    if kind is not None and not (inspect.isclass(found) and issubclass(found, kind)):
        raise UserError(f"{where}.name={name}: {found!r} must be a subclass of {kind.__module__}.{kind.__name__}")
    return found


def takes(constructor: Callable[..., Any], argument: str) -> bool:
    """Whether a constructor has an argument of this name."""
    return argument in inspect.signature(constructor).parameters


def arguments(
    constructor: Callable[..., Any],
    node: DictConfig,
    where: str,
    *,
    provided: Iterable[str] = (),
) -> dict[str, Any]:
    """Check a config node against a constructor's signature and return the keyword arguments.

    Args:
        constructor: a class or function with annotated keyword arguments.
        node: the settings, with or without the key `name`.
        where: the node's place in the configuration, for the error message; empty for its root.
        provided: arguments that the program passes itself and a config may not set.

    Returns:
        Plain Python values, converted to the annotated types.

    Raises:
        UserError: an unknown key, a missing one, or a value of the wrong type.
    """
    prefix = f"{where}." if where else ""
    signature = inspect.signature(constructor).parameters
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = {key: value for key, value in signature.items() if value.kind not in variadic}
    hints = typing.get_type_hints(constructor.__init__ if inspect.isclass(constructor) else constructor)
    settable = {key: hints.get(key) for key in parameters if key not in set(provided)}
    for key, annotation in settable.items():
        if annotation is None:
            raise UserError(f"{prefix}{key}: the argument of {constructor.__name__} has no type: annotate it")
    given = {key: value for key, value in _entries(node).items() if key != "name" or key in settable}

    for key in given:
        if key not in settable:
            hint = did_you_mean(key, settable) or f"; there are {', '.join(settable) or 'no settings here'}"
            raise UserError(f"{prefix}{readable(key)}: no such setting{hint}")

    for key in settable:
        if parameters[key].default is inspect.Parameter.empty and key not in given:
            raise UserError(f"{prefix}{key} has no value: set {prefix}{key}=...")
    return {key: _convert(value, settable[key], f"{prefix}{key}") for key, value in given.items()}


def _convert(value: Any, annotation: Any, where: str) -> Any:
    """Convert one value to an annotated type by OmegaConf's own rules."""
    if isinstance(value, str) and value == MISSING_VALUE:
        raise UserError(f"{where} has no value: set {where}=...")
    choices = _literal_choices(annotation)
    expected = f"one of {', '.join(choices)}" if choices else _spelled(annotation)
    _refuse_references(value, where)
    try:
        node = OmegaConf.merge(_schema(annotation), {"value": value})
        converted = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(f"{where}={shown(value)}: expected {expected}") from error
    result = converted["value"]
    if choices and result is not None and result not in choices:
        hint = did_you_mean(str(result), choices) or f"; choose from {', '.join(choices)}"
        raise UserError(f"{where}={shown(result)}: no such choice{hint}")
    if typing.get_origin(annotation) is tuple and result is not None:
        if len(result) != len(typing.get_args(annotation)):
            raise UserError(f"{where}={shown(result)}: expected {expected}")
        return tuple(result)
    return result


def part(
    registry: Registry, node: DictConfig, where: str, *, kind: type[Any] | None = None, provided: Iterable[str] = ()
) -> partial[Any]:
    """What a config node names, with its settings, checked and not built yet.

    Args:
        registry: what the name is looked up in.
        node: the name and the settings.
        where: the node's place in the configuration, for the error message.
        kind: as of `lookup`.
        provided: arguments that the program passes when it calls the part.

    Raises:
        UserError: as `lookup` and `arguments`; or the part does not take what the program passes.
    """
    constructor = lookup(registry, node, where, kind)
    parameters = inspect.signature(constructor).parameters
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        for key in provided:
            if key not in parameters:
                name = shown(node.name)
                raise UserError(f"{where}.name={name}: {constructor.__name__} must take {key}, which cifargan passes")
    return partial(constructor, **arguments(constructor, node, where, provided=provided))


def section(node: DictConfig, key: str, where: str = "") -> DictConfig:
    """A group of settings within a node.

    Args:
        node: the configuration, or a node of it.
        key: the group's place in the node.
        where: the node's place in the configuration, for the error message; empty for its root.

    Raises:
        UserError: the group was removed, or is a single value.
    """
    found = OmegaConf.select(node, key)
    if not isinstance(found, DictConfig):
        place = f"{where}.{key}" if where else key
        raise UserError(f"{place}={shown(found)}: expected a group of settings; `cifargan train --cfg job` shows them")
    return found


def without(node: DictConfig, *keys: str) -> DictConfig:
    """A copy of a node that lacks some keys."""
    return OmegaConf.create({key: value for key, value in _entries(node).items() if key not in keys})


def _entries(node: DictConfig) -> dict[str, Any]:
    """What a node holds, where a value that is yet to be given does not raise."""
    return {str(key): MISSING_VALUE if OmegaConf.is_missing(node, key) else node[key] for key in node}


def _refuse_references(value: Any, where: str) -> None:
    """Stop text that would be looked up when it is converted.

    Raises:
        UserError: there is some in the value.
    """
    plain = OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value
    if REFERENCE in str(plain):
        raise UserError(f"{where}={readable(str(plain))}: is not looked up here: write the value itself")


@cache
def _schema(annotation: Any) -> DictConfig:
    """A config with one typed value, for OmegaConf to check against."""
    fields = [("value", _omegaconf_type(annotation), field(default=MISSING))]
    return cast(DictConfig, OmegaConf.structured(make_dataclass("Schema", fields)))


def shown(value: Any) -> str:
    """A value as one would write it in a config."""
    return "null" if value is None else readable(str(value))


def _spelled(annotation: Any) -> str:
    """An annotation as it reads in the source: `int`, not `<class 'int'>`."""
    return str(annotation) if typing.get_args(annotation) else annotation.__name__


def _literal_choices(annotation: Any) -> list[str]:
    """The strings that a `Literal[...]`, or an optional one, allows."""
    if typing.get_origin(annotation) is Literal:
        return [str(choice) for choice in typing.get_args(annotation)]
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return [choice for part in typing.get_args(annotation) for choice in _literal_choices(part)]
    return []


def _omegaconf_type(annotation: Any) -> Any:
    """The nearest type that OmegaConf can check; it has no `Literal`."""
    if _literal_choices(annotation):
        return str | None if type(None) in typing.get_args(annotation) else str
    return annotation
