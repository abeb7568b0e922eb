"""Turns every failure that a user can cause into one clear line and an exit code."""

import errno
import re
import sys
import traceback as tracebacks

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from cifargan.config_files import choices
from cifargan.config_files import groups as groups
from cifargan.config_files import known_keys as _known_keys
from cifargan.config_files import options as options
from cifargan.errors import UserError, did_you_mean, is_out_of_memory, is_reported_elsewhere
from cifargan.untrusted import readable

USER = 2
BUG = 1
NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)


def report(error: BaseException, *, traceback: bool = False) -> int:
    """Print an error for a person and return the exit code.

    Any other error keeps its traceback: it is a bug, and a report needs the trace.
    """
    if is_reported_elsewhere(error):
        return exit_code(error)
    message = explain(error)
    if traceback or message is None:
        tracebacks.print_exception(error)
    text = message or f"{_place(error)}: {error!r}"
    # A message may quote an untrusted file, and control characters would act on the terminal.
    print("error: " + "\n".join(readable(line, limit=4000) for line in text.split("\n")), file=sys.stderr)
    return exit_code(error)


def _place(error: BaseException) -> str:
    """Whose code has failed: a part of the user's own, or this package."""
    if "cifargan.registry" in sys.modules:  # nobody else has registered anything; importing it takes seconds
        own = sys.modules["cifargan.registry"].own_modules()
        for frame, line in reversed([*tracebacks.walk_tb(error.__traceback__)]):
            if frame.f_globals.get("__name__") in own:
                return f"an error in {frame.f_code.co_filename}, line {line}"
        if isinstance(error, AttributeError) and type(error.obj).__module__ in own:
            return f"an error in your class {type(error.obj).__name__}"
    return "this is a bug in cifargan"


def exit_code(error: BaseException) -> int:
    """128 + n for signal n, 2 for what the user can mend, 1 for a bug."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    number = getattr(error, "signal", None)
    if isinstance(number, int):
        return 128 + number
    return BUG if explain(error) is None else USER


def explain(error: BaseException) -> str | None:
    """One line (or a few short ones) that says what, where and what to do; None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    if isinstance(getattr(error, "signal", None), int):
        return str(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_composition(error)
    if is_out_of_memory(error):
        return (
            "out of memory: lower trainer.batch_size, or raise trainer.accumulate (the same batch in smaller parts; "
            "auto finds the number), or choose precision=bf16; `cifargan sample` takes a lower --batch-size"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        place = f" at {error.filename}" if error.filename else ""
        return f"the disk is full{place}: free some space, then resume with resume=RUN; nothing written before is lost"
    if isinstance(error, OSError) and error.errno in NO_PLACE:
        return f"cannot use {error.filename} ({error.strerror}): choose another output_root or --out"
    return None


def _explain_composition(error: Exception) -> str:
    """What is wrong with the overrides, in the terms of the command line."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return (
            f"cannot read the override {error.override}: write it as key=value, and quote values with spaces or commas"
        )
    if match := re.search(r"Could not (?:find|load) '([^']+)'", text):
        return _no_such_option(match[1])
    if match := re.search(r"Could not override '([^']+)'", text):
        # OmegaConf knows which key of `trainer={stpes:1}` it was; Hydra names the override.
        key = getattr(error.__cause__, "full_key", None) or match[1]
        if "No match in the defaults list" in text:
            return f"{key}: no such group{did_you_mean(key, groups())}"
        group, _, name = match[1].rpartition(".")[0].partition(".")
        if group == "regularizer" and name in options(group):
            return f"{match[1]} is set, but {name} is not chosen: choose it with 'regularizer=[{name}]'"
        return f"{key}: no such setting{_near(key)}"
    if match := re.search(r"Multiple values for ([\w./@]+)", text):
        return f"{match[1]} is given twice"
    if match := re.search(r"Ambiguous value for argument '(([^=']+)=([^']*))'", text):
        return f"{match[1]}: several values are a sweep, which takes -m; a list is written {match[2]}=[{match[3]}]"
    if match := re.search(r"Missing mandatory value: ([\w.]+)", text):
        return f"{match[1]} has no value: set {match[1]}=..."
    # OmegaConf adds lines about its own objects.
    return " ".join(
        line.strip() for line in text.splitlines() if not line.strip().startswith(("full_key", "object_type"))
    )


def _no_such_option(path: str) -> str:
    group, _, name = path.rpartition("/")
    known = choices(group)
    own = "; one of your own needs --config-dir DIR, also to resume"
    hint = did_you_mean(name, known) or f"; choose from {', '.join(known) or 'none, there are none yet'}{own}"
    return f"{group}={name}: no such {group or 'config'}{hint}"


def _near(key: str) -> str:
    """Offer keys that are spelt alike, or end alike: `lr` is `optimizer.generator.lr`."""
    known = sorted({*_known_keys()} - {key})  # which another model may have
    if hint := did_you_mean(key, known):
        return hint
    same_end = [name for name in known if name.split(".")[-1] == key.split(".")[-1]][:3]
    return f"; did you mean {' or '.join(same_end)}?" if same_end else "; `cifargan train --cfg job` shows them all"
