"""The one exception that means "the user can put this right", and the hint that helps with a typo."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A failure that the user caused and can mend.

    The message is one line (or a few short ones) that says what is wrong, where, and what to do. The command line
    prints it without a traceback and exits with code 2.
    """


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A half sentence that offers the nearest of `choices`, or nothing at all."""
    near = difflib.get_close_matches(word, list(choices), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def is_met_by_all(error: BaseException) -> bool:
    """Whether every process of the run raises this error, so that none has to be killed because of it."""
    return getattr(error, "met_by_all", False) is True


def is_reported_elsewhere(error: BaseException) -> bool:
    """Whether another process of the run prints this error."""
    return getattr(error, "reported_elsewhere", False) is True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the host had no memory left; torch has no exception for the host."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )
