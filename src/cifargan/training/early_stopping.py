"""The best score so far, and when scores say that a run should end."""

import logging
import math
from collections.abc import Iterable
from typing import Any

from cifargan.evaluation.records import Better, Record

log = logging.getLogger(__name__)

SOMETHING = 0.05  # precision, recall or coverage that a generator must have had once
NOTHING = 0.01  # and below which it then has lost it


class ScoreWatch:
    """Remembers the best score, and says when scores get worse.

    Args:
        warn_after: evaluations in a row that may get worse before it warns.
        stop_after: evaluations without a new best after which it gives up; None: never.
        target: the score that is good enough; None: none is.
        better: whether a low or a high score is good.
    """

    def __init__(
        self, *, warn_after: int, stop_after: int | None, target: float | None = None, better: Better = "lower"
    ) -> None:
        self.warn_after = warn_after
        self.stop_after = stop_after
        self.target = target
        self.best: float | None = None
        self.best_step: int | None = None
        self.sign = 1 if better == "lower" else -1  # times a score: lower is better
        self.last = self.sign * math.inf
        self.worse = 0
        self.since_best = 0
        self.once_fine: list[str] = []
        self.warned_of: list[str] = []

    @property
    def over(self) -> bool:
        """Whether training should end: the target is reached, or there has been no new best for too long."""
        return self.reached or self._too_long(self.since_best)

    @property
    def reached(self) -> bool:
        """Whether the best score is as good as the target."""
        return self.target is not None and self.best is not None and self.sign * (self.best - self.target) <= 0

    def _too_long(self, since_best: int) -> bool:
        return self.stop_after is not None and since_best >= self.stop_after

    def look(self, score: float, step: int) -> bool:
        """Take a new score; whether it is the best so far."""
        if not math.isfinite(score):
            return False
        self.worse = self.worse + 1 if self.sign * (score - self.last) > 0 else 0
        self.last = score
        if self.best is None or self.sign * (score - self.best) < 0:
            self.best, self.best_step, self.since_best = score, step, 0
            if self.reached:
                log.info("step %d: %.4g has reached evaluator.target=%s: training ends", step, score, self.target)
            return True
        self.since_best += 1
        if self.worse == self.warn_after:
            log.warning(
                "step %d: the score has got worse for %d evaluations in a row, from the best %.4g at step %s to %.4g: the run "
                "may be collapsing. Its best checkpoint is kept; lower learning rates, "
                "augment=diffaugment or regularizer=lecam help most often",
                step,
                self.worse,
                self.best,
                self.best_step,
                score,
            )
        if self.over:
            log.warning(
                "step %d: no better score than %.4g (step %s) for %d evaluations (evaluator.stop_after): training ends",
                step,
                self.best,
                self.best_step,
                self.since_best,
            )
        return False

    def look_at_details(self, records: Iterable[Record], step: int) -> None:
        """Warn once of a precision, recall or coverage that fell to nothing, where a distance may look innocent."""
        for record in records:
            name = record.metric.split("_")[0]
            if name not in ("precision", "recall", "coverage"):
                continue
            if record.value >= SOMETHING and name not in self.once_fine:
                self.once_fine.append(name)
            # A generator that has learnt nothing yet covers nothing either.
            if record.value < NOTHING and name in self.once_fine and name not in self.warned_of:
                self.warned_of.append(name)
                lacking = (
                    "hardly any sample is near a real image" if name == "precision" else "hardly any variety is left"
                )
                log.warning("step %d: %s is %.3g: %s", step, record.metric, record.value, lacking)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {
            "score": self.best,
            "step": self.best_step,
            "last": self.last,
            "worse": self.worse,
            "since_best": self.since_best,
            "once_fine": self.once_fine,
            "warned_of": self.warned_of,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict`. A run that had given up is given another chance."""
        self.best, self.best_step = state["score"], state["step"]
        self.last, self.worse = float(state["last"]), int(state["worse"])
        since_best = int(state["since_best"])
        self.since_best = 0 if self._too_long(since_best) else since_best
        self.once_fine = [str(name) for name in state["once_fine"]]
        self.warned_of = [str(name) for name in state["warned_of"]]
