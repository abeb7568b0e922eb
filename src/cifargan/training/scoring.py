"""The scores of a run: what they cost, what they decide, and that one that fails costs itself and not the run."""

import logging
import time
from collections.abc import Callable
from contextvars import ContextVar

import torch

from cifargan import distributed
from cifargan.distributed import on_rank_zero
from cifargan.errors import UserError, is_met_by_all
from cifargan.evaluation.evaluator import Evaluator, Stop
from cifargan.evaluation.feature_stats import StoppedError
from cifargan.evaluation.records import Record, add_to_file, formatted
from cifargan.sampling import Sampler
from cifargan.training.early_stopping import ScoreWatch
from cifargan.training.log import RunLog, Throughput

log = logging.getLogger(__name__)

# Called with each evaluation's step, records and monitored key, by whoever started the training; may raise to end it.
# In the context, as what lies between has no business with it.
Watcher = Callable[[int, list[Record], str], None]


def nobody(step: int, records: list[Record], monitor: str) -> None:
    """No one looks at the scores as they come."""


watcher: ContextVar[Watcher] = ContextVar("watcher", default=nobody)


class Scoring:
    """Scores averaged weights with an evaluator, logs and keeps what it says, and remembers the best.

    Args:
        evaluator: what scores.
        sampler: makes a sampler of a copy of the averaged weights.
        tracker: where scores go.
        pace: is told how long it took.
        device: where training runs.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        sampler: Callable[[], Sampler],
        tracker: RunLog,
        pace: Throughput,
        device: torch.device,
    ) -> None:
        self.evaluator = evaluator
        self.sampler = sampler
        self.tracker = tracker
        self.pace = pace
        self.device = device
        self.watch = ScoreWatch(
            warn_after=evaluator.warn_after,
            stop_after=evaluator.stop_after,
            target=evaluator.target,
            better=evaluator.better,
        )

    def score(self, step: int, stop: Stop) -> bool:
        """Score the weights of `step`; whether this is the best score so far."""
        records = self._records(step, lambda: self.evaluator.evaluate(self.sampler(), step=step, stop=stop))
        self.watch.look_at_details(records, step)
        monitored = [record.value for record in records if record.key == self.evaluator.monitor]
        watcher.get()(step, records, self.evaluator.monitor)
        return any(self.watch.look(value, step) for value in monitored)

    def score_finally(self, step: int, stop: Stop) -> list[Record]:
        """Score the last weights as one would report them. All training is saved by now."""
        return self._records(step, lambda: self.evaluator.final(self.sampler(), step=step, stop=stop))

    def _records(self, step: int, evaluate: Callable[[], list[Record]]) -> list[Record]:
        """What an evaluation yields, logged and kept."""
        started = time.monotonic()
        try:
            records = evaluate()
            self._keep(step, records)
        except StoppedError as error:
            log.info("%s", error)
            records = []
        except Exception as error:
            if distributed.world_size() > 1 and not is_met_by_all(error):
                # The others wait for what will not come: this process has to end, and with it the run.
                raise
            # torch says with a RuntimeError that memory is out. What nobody foresaw keeps its trace.
            foreseen = isinstance(error, UserError | RuntimeError | MemoryError)
            reason = (str(error) or repr(error)).splitlines()[0]
            log.warning("step %d: no scores (%s); training goes on", step, reason, exc_info=not foreseen)
            records = []
        if self.device.type == "cuda":
            # The extractor's activations must not stand in the way of training's.
            torch.cuda.empty_cache()
        seconds = time.monotonic() - started
        self.pace.pause(seconds)
        if records:
            self.tracker.records(step, records, {"speed/evaluation_share": self.pace.paused_share})
            shown = "  ".join(f"{record.key} {formatted(record)}" for record in records if record.class_name is None)
            log.info("step %d  %s  (%.0f s)", step, shown, seconds)
        return records

    def _keep(self, step: int, records: list[Record]) -> None:
        """Write scores to their file; where it cannot be written they are still in the log, and still decide."""
        try:
            if records:
                on_rank_zero(lambda: add_to_file(self.tracker.directory.evaluation, records))
        except UserError as error:
            log.warning("step %d: %s", step, error)
