"""Whether a case came out well, and the loop over cases."""

# ruff: noqa: S311 - the cases are to be had again
import contextlib
import json
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cifargan.cli.errors import explain

PATIENCE = 5.0  # seconds that one case may take
APPETITE = 1024  # MiB that one case may add to the highest memory of the process
ENOUGH = 20  # findings after which a part is given up


class TooSlowError(BaseException):
    """A case took longer than it may; no `except Exception` of a reader keeps it."""


@dataclass
class Tally:
    """What came of one part."""

    cases: int = 0
    refused: int = 0
    worked: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, kind: str, text: str) -> bool:
        """Count an outcome; whether it is a finding."""
        self.cases += 1
        self.worked += kind == "worked"
        self.refused += kind == "refused"
        if kind == "finding":
            self.findings.append(text)
        return kind == "finding"


@dataclass(frozen=True)
class Part:
    """One kind of input.

    Args:
        make: changes a good input by the operations of these seeds, and hands it to its reader.
        most: operations of one case.
    """

    make: Callable[[list[int]], object]
    most: int = 4


@contextlib.contextmanager
def alarmed() -> Iterator[None]:
    """Stop what is inside after `PATIENCE`."""

    def late(*_: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak() -> int:
    """The highest memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform == "darwin" else 1024)


def outcome(case: Callable[[], object]) -> tuple[str, str]:
    """What came of a case: `worked`, `refused` or `finding`, and what is to be said of it."""
    before = peak()
    result = "worked", ""
    try:
        with alarmed():
            case()
    except TooSlowError:
        return "finding", f"took more than {PATIENCE:g} s"
    except SystemExit as error:
        return "finding", f"exit {error.code}"
    except Exception as error:
        line = explain(error)
        clear = bool(line) and not str(line).startswith("out of memory")
        result = ("refused", str(line)) if clear else ("finding", f"{type(error).__name__}: {error}"[:300])
    if peak() - before > APPETITE:
        return "finding", f"took {peak() - before} MiB more memory"
    return result


def smallest(part: Part, seeds: list[int]) -> list[int]:
    """The operations without those that the finding does not need."""
    for seed in seeds[1:]:
        fewer = [seeds[0], *(other for other in seeds[1:] if other != seed)]
        if outcome(lambda fewer=fewer: part.make(fewer))[0] == "finding":  # type: ignore[misc]
            seeds = fewer
    return seeds


def fuzz(name: str, part: Part, *, seed: int, cases: int, until: float, out: Path) -> Tally:
    """Try cases of one part until there were so many, or it is so late."""
    tally = Tally()
    while tally.cases < cases and time.monotonic() < until and len(tally.findings) < ENOUGH:
        rng = random.Random(f"{seed} {name} {tally.cases}")
        seeds = [rng.randrange(2**32) for _ in range(1 + rng.randint(1, part.most))]
        kind, text = outcome(lambda seeds=seeds: part.make(seeds))  # type: ignore[misc]
        if tally.add(kind, text):
            about = {"part": name, "seed": seed, "case": tally.cases - 1, "seeds": smallest(part, seeds), "what": text}
            keep(about, out / f"{name}_{seed}_{tally.cases - 1}.json")
    return tally


def keep(finding: dict[str, object], path: Path) -> None:
    """Write a finding down, for `--again`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(finding, indent=2) + "\n")
