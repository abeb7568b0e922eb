"""Where the configuration lives, and the check that it says only what the code understands.

There is no second description of the settings: the schema of a group is the signature of the constructor that the
group's `name` stands for. A new argument with a type and a default is a new setting.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, field, make_dataclass
from pathlib import Path
from typing import Any, Literal, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifargan.errors import UserError, did_you_mean

Registry = Mapping[str, Callable[..., Any]]


def conf_dir() -> Path:
    """The absolute path of the shipped configs: inside the wheel, or beside `src/` in a checkout."""
    package = Path(__file__).resolve().parent
    shipped = package / "conf"
    return shipped if shipped.is_dir() else package.parent.parent / "conf"


def lookup(registry: Registry, name: str, where: str) -> Callable[..., Any]:
    """The constructor behind a name.

    Raises:
        UserError: the registry has no such name.
    """
    if name not in registry:
        hint = did_you_mean(name, registry) or f"; choose from {', '.join(sorted(registry))}"
        raise UserError(f"{where}={name}: no such name{hint}")
    return registry[name]


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
        where: the node's place in the configuration, for the error message.
        provided: arguments that the program passes itself and a config may not set.

    Returns:
        Plain Python values, converted to the annotated types.

    Raises:
        UserError: an unknown key, a missing one, or a value of the wrong type.
    """
    signature = inspect.signature(constructor).parameters
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = {key: value for key, value in signature.items() if value.kind not in variadic}
    hints = typing.get_type_hints(constructor.__init__ if inspect.isclass(constructor) else constructor)
    settable = {key: hints[key] for key in parameters if key not in set(provided)}
    given = {str(key): value for key, value in node.items() if key != "name" or key in settable}

    for key in given:
        if key not in settable:
            hint = did_you_mean(key, settable) or f"; there are {', '.join(settable) or 'no settings here'}"
            raise UserError(f"{where}.{key}: no such setting{hint}")

    for key in settable:
        if parameters[key].default is inspect.Parameter.empty and key not in given:
            raise UserError(f"{where}.{key} has no value: set {where}.{key}=...")
    return {key: _convert(value, settable[key], f"{where}.{key}") for key, value in given.items()}


def _convert(value: Any, annotation: Any, where: str) -> Any:
    """Convert one value to an annotated type by OmegaConf's own rules."""
    if _is_missing(value):
        raise UserError(f"{where} has no value: set {where}=...")
    choices = _literal_choices(annotation)
    expected = f"one of {', '.join(choices)}" if choices else _spelled(annotation)
    schema = make_dataclass("Schema", [("value", _omegaconf_type(annotation), field(default=MISSING))])
    try:
        node = OmegaConf.merge(OmegaConf.structured(schema), {"value": value})
        converted = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(f"{where}={value}: expected {expected}") from error
    result = converted["value"]
    if choices and result is not None and result not in choices:
        hint = did_you_mean(str(result), choices) or f"; choose from {', '.join(choices)}"
        raise UserError(f"{where}={result}: no such choice{hint}")
    if typing.get_origin(annotation) is tuple and result is not None:
        if len(result) != len(typing.get_args(annotation)):
            raise UserError(f"{where}={result}: expected {expected}")
        return tuple(result)
    return result


def _spelled(annotation: Any) -> str:
    """An annotation as it reads in the source: `int`, not `<class 'int'>`."""
    return str(annotation) if typing.get_args(annotation) else annotation.__name__


def _is_missing(value: Any) -> bool:
    return isinstance(value, str) and value == "???"


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
