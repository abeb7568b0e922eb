"""Score a run while it trains: log, save and watch the scores. A failed evaluation costs a warning, not the run."""

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

# Called with each evaluation's step, records and monitored key; may raise to end the training. It is set in the context
# by whoever starts the training (a search over settings).
Watcher = Callable[[int, list[Record], str], None]


def nobody(step: int, records: list[Record], monitor: str) -> None:
    """Ignore the scores."""


watcher: ContextVar[Watcher] = ContextVar("watcher", default=nobody)


class Scoring:
    """Scores the averaged weights, and remembers the best score.

    Args:
        evaluator: computes the scores.
        sampler: makes a sampler of a copy of the averaged weights.
        tracker: the run log.
        pace: leaves out the time of evaluations.
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
        """Score the weights of `step`; returns whether this is the best score so far."""
        records = self._records(step, lambda: self.evaluator.evaluate(self.sampler(), step=step, stop=stop))
        self.watch.look_at_details(records, step)
        monitored = [record.value for record in records if record.key == self.evaluator.monitor]
        watcher.get()(step, records, self.evaluator.monitor)
        return any(self.watch.look(value, step) for value in monitored)

    def score_finally(self, step: int, stop: Stop) -> list[Record]:
        """Score the last weights with the samples of a published score."""
        return self._records(step, lambda: self.evaluator.final(self.sampler(), step=step, stop=stop))

    def _records(self, step: int, evaluate: Callable[[], list[Record]]) -> list[Record]:
        """Evaluate, log and save; [] if the evaluation fails or is stopped."""
        started = time.monotonic()
        try:
            records = evaluate()
            self._keep(step, records)
        except StoppedError as error:
            log.info("%s", error)
            records = []
        except Exception as error:
            if distributed.world_size() > 1 and not is_met_by_all(error):
                # The other ranks wait for this one, so it has to end, and with it the run.
                raise
            # torch reports exhausted memory with a RuntimeError. A bug keeps its traceback.
            foreseen = isinstance(error, UserError | RuntimeError | MemoryError)
            reason = (str(error) or repr(error)).splitlines()[0]
            log.warning("step %d: no scores (%s); training continues", step, reason, exc_info=not foreseen)
            records = []
        if self.device.type == "cuda":
            # The memory of the extractor's activations is needed by training.
            torch.cuda.empty_cache()
        seconds = time.monotonic() - started
        self.pace.pause(seconds)
        if records:
            self.tracker.records(step, records, {"speed/evaluation_share": self.pace.paused_share})
            shown = "  ".join(f"{record.key} {formatted(record)}" for record in records if record.class_name is None)
            log.info("step %d  %s  (%.0f s)", step, shown, seconds)
        return records

    def _keep(self, step: int, records: list[Record]) -> None:
        """Write scores to evaluation.json; if that fails they are still in the log, and still count."""
        try:
            if records:
                on_rank_zero(lambda: add_to_file(self.tracker.directory.evaluation, records))
        except UserError as error:
            log.warning("step %d: %s", step, error)
