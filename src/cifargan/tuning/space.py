"""The space that a search covers, read from overrides in Hydra's own grammar."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from cifargan.errors import UserError

LOG_FROM = 100 * (1 - 1e-9)  # end / start of an interval from which the scale is logarithmic
TAGS = {"log", "linear"}


@dataclass(frozen=True)
class Space:
    """What stays the same in every trial, and what varies.

    Attributes:
        fixed: overrides of every trial.
        varied: the distribution of each setting that is searched.
    """

    fixed: tuple[str, ...]
    varied: dict[str, BaseDistribution]

    def overrides(self, values: dict[str, Any]) -> list[str]:
        """The overrides of one trial. They are what is trained, so numbers have six digits."""
        shown = {key: f"{values[key]:.6g}" if isinstance(values[key], float) else values[key] for key in self.varied}
        return [*self.fixed, *(f"{key}={value}" for key, value in shown.items())]


def space_of(overrides: Sequence[str]) -> Space:
    """Sort overrides into those that stay and those that are searched.

    Raises:
        UserError: nothing is searched, a setting is given twice, or an interval is wrong.
        OverrideParseException: one cannot be read.
    """
    fixed: list[str] = []
    varied: dict[str, BaseDistribution] = {}
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    keys = [override.get_key_element() for override in parsed]
    for key, override in zip(keys, parsed, strict=True):
        if keys.count(key) > 1:
            raise UserError(f"{key} is given twice")
        if override.is_sweep_override():
            varied[key] = _distribution(override, str(override.input_line))
        else:
            fixed.append(str(override.input_line))
    if not varied:
        raise UserError(
            "nothing to search: give a setting an interval or a choice, "
            "such as 'optimizer.generator.lr=interval(1e-5,1e-3)' or 'regularizer=choice(none,lecam)'"
        )
    return Space(tuple(fixed), varied)


def _distribution(override: Override, line: str) -> BaseDistribution:
    value = override.value()
    if isinstance(value, IntervalSweep):
        return _interval(value, line)
    if isinstance(value, RangeSweep) and not value.shuffle:
        values = sorted(value.range())
        if not values:
            raise UserError(f"{line}: is an empty range")
        if all(isinstance(number, int) for number in values):
            return IntDistribution(int(values[0]), int(values[-1]), step=abs(int(value.step)))
        return FloatDistribution(float(values[0]), float(values[-1]), step=abs(float(value.step)))
    if not override.is_choice_sweep() or "glob(" in line:
        raise UserError(f"{line}: search in interval(a,b), range(a,b) or choice(a,b,...)")
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _interval(value: IntervalSweep, line: str) -> BaseDistribution:
    low, high = value.start, value.end
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{line}: an interval goes from a number to a larger one")
    if value.tags == TAGS or not value.tags <= TAGS:
        raise UserError(f"{line}: an interval has one of the tags log and linear, or none")
    if "log" in value.tags and low <= 0:
        raise UserError(f"{line}: on a logarithmic scale an interval starts above 0")
    # A learning rate: as likely between 1e-5 and 1e-4 as between 1e-4 and 1e-3.
    log = "log" in value.tags or ("linear" not in value.tags and low > 0 and high / low >= LOG_FROM)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)
