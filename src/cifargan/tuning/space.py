"""What a search may vary, read from overrides in Hydra's own grammar."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from cifargan.errors import UserError

LOG_FROM = 100 * (1 - 1e-9)  # end / start of an interval from which it is searched by orders of magnitude
TAGS = {"log", "linear"}


@dataclass(frozen=True)
class Space:
    """What stays the same in every trial, and what varies.

    Attributes:
        fixed: overrides of every trial.
        varied: the key of each setting that is searched, and where.
    """

    fixed: tuple[str, ...]
    varied: dict[str, BaseDistribution]

    def overrides(self, values: dict[str, CategoricalChoiceType]) -> list[str]:
        """The overrides of one trial; what they say is what is trained, so numbers have six digits."""
        return [*self.fixed, *(f"{key}={written(values[key])}" for key in self.varied)]


def written(value: CategoricalChoiceType) -> str:
    """A value as an override says it."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def space_of(overrides: Sequence[str]) -> Space:
    """Sort overrides into those that stay and those that are searched.

    Raises:
        UserError: nothing is searched, a setting is given twice, or an interval is none.
        OverrideParseException: one cannot be read.
    """
    fixed: list[str] = []
    varied: dict[str, BaseDistribution] = {}
    keys: set[str] = set()
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        if key in keys:
            raise UserError(f"{key} is given twice")
        keys.add(key)
        if override.is_sweep_override():
            varied[key] = _distribution(override)
        else:
            fixed.append(str(override.input_line))
    if not varied:
        raise UserError(
            "nothing to search: give a setting an interval or a choice, "
            "such as 'optimizer.generator.lr=interval(1e-5,1e-3)' or 'regularizer=choice(none,lecam)'"
        )
    return Space(tuple(fixed), varied)


def _distribution(override: Override) -> BaseDistribution:
    value = override.value()
    if isinstance(value, IntervalSweep):
        return _interval(value, str(override.input_line))
    if isinstance(value, RangeSweep) and not value.shuffle:
        values = list(value.range())
        if not values:
            raise UserError(f"{override.input_line}: is an empty range")
        low, high, step = values[0], values[-1], abs(value.step)
        low, high = min(low, high), max(low, high)
        if all(isinstance(number, int) for number in values):
            return IntDistribution(int(low), int(high), step=int(step))
        return FloatDistribution(float(low), float(high), step=float(step))
    if not override.is_choice_sweep() or "glob(" in str(override.input_line):
        raise UserError(f"{override.input_line}: search in interval(a,b), range(a,b) or choice(a,b,...)")
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def _interval(value: IntervalSweep, line: str) -> BaseDistribution:
    low, high = value.start, value.end
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{line}: an interval goes from a number to a larger one")
    if unknown := value.tags - TAGS:
        raise UserError(f"{line}: no such tag: {', '.join(sorted(unknown))}; there are log and linear")
    if value.tags == TAGS:
        raise UserError(f"{line}: log or linear, not both")
    if "log" in value.tags and low <= 0:
        raise UserError(f"{line}: on a logarithmic scale an interval begins above 0")
    # A learning rate: as likely between 1e-5 and 1e-4 as between 1e-4 and 1e-3.
    log = "log" in value.tags or ("linear" not in value.tags and low > 0 and high / low >= LOG_FROM)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)
