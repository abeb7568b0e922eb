"""What a run is and how it stands, from the files in its folder."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from cifargan.errors import UserError
from cifargan.folders import require_no_pipes
from cifargan.report.reading import TAIL, config_of, log_points, number, overrides_of, sessions, setting, text, whole
from cifargan.report.scores import Score, headline, scores_of
from cifargan.runs.directory import RunDirectory, Status

__all__ = ["RunSummary", "Score", "summary_of"]

UNKNOWN = "unknown"
STATUSES = (*get_args(Status), UNKNOWN)
LOG_POINTS = 10  # whose median is the speed: a single one may hold an evaluation, or a pause of the machine


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run. Every text is safe on a terminal (`strangers.readable`), none is safe in HTML.

    Attributes:
        path: its folder.
        name: what its configuration calls it; its folder's name where that is not known.
        status: running, finished, interrupted, diverged, failed or unknown; one whose process died is interrupted.
        started: ISO time of its first start; empty where not known.
        last_activity: when it last said anything, in seconds since 1970; 0 where not known.
        step: the last step that is known of.
        steps: the step at which it is to end.
        seed: of its newest start.
        device: of its newest start; empty where not known.
        images_per_s: real images seen a second, the median of the last log points.
        overrides: of its newest start.
        best: the lowest monitored score of its training.
        scores: final scores and those of `cifargan evaluate`, without those of single classes.
        history: scores while it trained, in the order of steps, without those of single classes.
    """

    path: Path
    name: str
    status: str
    started: str
    last_activity: float
    step: int
    steps: int | None
    seed: int | None
    device: str
    images_per_s: float | None
    overrides: tuple[str, ...]
    best: Score | None
    scores: tuple[Score, ...]
    history: tuple[Score, ...]

    @property
    def headline(self) -> Score | None:
        """The one score by which it is listed: after training where there is one, else the best while it trained."""
        return headline(self.best, self.scores)

    def age(self, now: float | None = None) -> float:
        """Seconds since it last said anything."""
        return max((time.time() if now is None else now) - self.last_activity, 0.0)


def summary_of(directory: Path) -> RunSummary:
    """Read a run's folder. Never raises for what is in it: what is missing or damaged is None, empty or unknown."""
    try:
        require_no_pipes(directory)
    except UserError:
        # Among its files is one that never ends: none is read.
        return _nothing_known(directory)
    return _summary(directory)


def _nothing_known(directory: Path) -> RunSummary:
    return RunSummary(
        path=directory,
        name=text(directory.absolute().name),
        status=UNKNOWN,
        started="",
        last_activity=0.0,
        step=0,
        steps=None,
        seed=None,
        device="",
        images_per_s=None,
        overrides=(),
        best=None,
        scores=(),
        history=(),
    )


def _summary(directory: Path) -> RunSummary:
    run = RunDirectory(directory)
    config, starts, status = config_of(run), sessions(run), run.status()
    newest = starts[-1] if starts else {}
    points = list(log_points(run, last=TAIL))
    speeds = [speed for _, line in points if (speed := number(line.get("speed/images_per_s"))) is not None]
    times = [number(status.get("time")), *(number(line.get("time")) for _, line in points)]
    seeds = whole(newest.get("seed")), whole(setting(config, "seed"))
    scores = scores_of(run, config)
    return RunSummary(
        path=directory,
        name=text(setting(config, "name")) or text(directory.absolute().name),
        status=text(status.get("status")) if status.get("status") in STATUSES else UNKNOWN,
        started=text(starts[0].get("started")) if starts else "",
        last_activity=max((moment for moment in times if moment is not None), default=0.0),
        step=max([whole(status.get("step")) or 0, *(step for step, _ in points)]),
        steps=whole(setting(config, "trainer.steps")),
        seed=next((seed for seed in seeds if seed is not None), None),
        device=text(newest.get("device")),
        images_per_s=statistics.median(speeds[-LOG_POINTS:]) if speeds else None,
        overrides=overrides_of(run),
        best=scores.best,
        scores=scores.final,
        history=scores.history,
    )
