"""The training loop: runs iterations, and logs, samples, scores and saves between them."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cifargan.data.sources import ImageSet
from cifargan.distributed import agree, on_rank_zero
from cifargan.errors import UserError, is_out_of_memory
from cifargan.evaluation.evaluator import Evaluator, Stop
from cifargan.evaluation.records import Record, scalars
from cifargan.images import grid
from cifargan.runs.checkpoint import CheckpointStore, State, require_classes
from cifargan.sampling import BatchNormMode, Sampler
from cifargan.training.collapse import CollapseWatch, spread
from cifargan.training.interruption import InterruptedRunError, Interruption
from cifargan.training.log import RunLog, Throughput
from cifargan.training.monitor import RunningMeans
from cifargan.training.recovery import RATE_FACTOR, DivergedError, renew_noise, require_finite
from cifargan.training.scoring import Scoring
from cifargan.training.step import GANStep

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """How a training ended: its last step, its best score under the evaluator's monitor, and the final records."""

    step: int
    best_step: int | None
    best_score: float | None
    records: tuple[Record, ...] = ()
    stopped_early: bool = False


class Trainer:
    """Trains a GAN to the last step.

    Args:
        gan: one iteration of the training.
        images: the real images, for a grid to compare with.
        evaluator: scores the averaged weights.
        tracker: where scalars and images go.
        checkpoints: where the state goes.
        config: the resolved configuration, kept in every checkpoint.
    """

    def __init__(
        self,
        *,
        gan: GANStep,
        images: ImageSet,
        evaluator: Evaluator,
        tracker: RunLog,
        checkpoints: CheckpointStore,
        config: dict[str, Any],
    ) -> None:
        self.gan = gan
        self.schedule = gan.schedule
        self.images = images
        self.tracker = tracker
        self.checkpoints = checkpoints
        self.config = config

        self.reals = _spread_out(images.images, 100)
        self.watch = CollapseWatch(real_spread=spread(self.reals))
        self.pace = Throughput()
        self.scoring = Scoring(evaluator, sampler=self.sampler, tracker=tracker, pace=self.pace, device=gan.device)
        self.running = RunningMeans([])
        self.rollbacks = 0  # how often this run went back after it had diverged
        self.unsaved = False  # whether the last attempt to write a checkpoint failed

    @property
    def step(self) -> int:
        """Generator updates done."""
        return self.gan.step

    def fit(self) -> Result:
        """Train until `trainer.steps`.

        Raises:
            DivergedError: a term is no longer finite, and `trainer.on_divergence` says to stop or there were too many
                rollbacks; the message names the last good checkpoint.
            UserError: the last checkpoint could not be written.
            InterruptedRunError: a signal asked the run to stop; its checkpoint is written.
        """
        self.pace.start(self.step)
        if self.schedule.on_divergence == "rollback" and on_rank_zero(lambda: not self.checkpoints.steps()):
            self._save(last=False)
        if self.step == 0:
            self.tracker.image("reals", grid(self.reals, columns=10), 0)
        with self.tracker, Interruption() as interruption:

            def stop() -> bool:
                return interruption.requested is not None

            if self.schedule.fits_memory:
                self._fit_memory()
            while self.step < self.schedule.steps and not self.scoring.watch.over:
                metrics = self.gan.iterate()
                # The scalars stay on the device until a log point.
                self._remember(metrics)
                self.tracker.advance(self.step)
                # Read once: a signal that comes during an evaluation takes effect after the next step, which saves.
                signal = agree(interruption.requested)
                try:
                    self._do_what_is_due(stop, stopping=signal is not None)
                except DivergedError as error:
                    self._roll_back(error)
                    continue
                if signal is not None:
                    raise InterruptedRunError(signal, f"stopped at step {self.step}, checkpoint written")
            records = self.scoring.score_finally(self.step, stop)
            if records:
                self.tracker.hyperparameters(self.config, scalars(records))
            signal = agree(interruption.requested)
            if signal is not None:
                raise InterruptedRunError(
                    signal,
                    f"trained to step {self.step}, checkpoint written; the final scores were not waited for",
                )
        return Result(self.step, self.best_step, self.best_score, tuple(records), self.scoring.watch.over)

    @property
    def best_score(self) -> float | None:
        """The best score so far."""
        return self.scoring.watch.best

    @property
    def best_step(self) -> int | None:
        """The step of the best score."""
        return self.scoring.watch.best_step

    def sampler(self, *, standing_batches: int = 16, batch_norm: BatchNormMode = "standing") -> Sampler:
        """A sampler of a copy of the averaged weights, which leaves training as it is."""
        return Sampler(
            self.gan.ema.generator,
            self.images.classes,
            device=self.gan.device,
            batch_norm=batch_norm,
            standing_batches=standing_batches,
            batch_size=self.scoring.evaluator.batch_size,
        )

    def _fit_memory(self) -> None:
        """Split the batch into as many parts as memory asks for; their number stays for the whole run."""
        self.gan.fit_memory()
        if self.gan.schedule.accumulate != self.schedule.accumulate:
            self.schedule = self.gan.schedule
            self._note_event(what="out of memory", step=self.step, accumulate=self.schedule.accumulate)

    def _note_event(self, **facts: Any) -> None:
        """Record in the provenance what happened to the run and what it did."""
        try:
            on_rank_zero(lambda: self.tracker.directory.add_event(**facts))
        except UserError as error:
            log.warning("%s", error)

    def _roll_back(self, error: DivergedError) -> None:
        """Go back to the last good state, with new noise and lower learning rates.

        Raises:
            DivergedError: the run is to stop, or has done this too often already.
        """
        if self.schedule.on_divergence == "stop":
            raise error
        if self.rollbacks >= self.schedule.max_rollbacks:
            times = f"{self.rollbacks} rollbacks have not helped (trainer.max_rollbacks): "
            raise DivergedError(f"{times}{error}") from error
        rollbacks, scale = self.rollbacks + 1, self.gan.rate_scale * RATE_FACTOR
        diverged_at = self.step
        step = self._go_back(error)
        self.rollbacks, self.gan.rate_scale = rollbacks, scale
        renew_noise(self.gan, seed=int(self.config["seed"]), rollbacks=rollbacks)
        log.warning(
            "%s: back to step %d with new noise and learning rates x %g (rollback %d of trainer.max_rollbacks=%d)",
            error.reason,
            step,
            scale,
            rollbacks,
            self.schedule.max_rollbacks,
        )
        facts = {"reason": error.reason, "step": diverged_at, "to": step, "number": rollbacks, "rate_scale": scale}
        self._note_event(what="rollback", **facts)
        # Under the same step, so that a resumed run has the lower rates.
        self._save(last=False)

    def _go_back(self, error: UserError) -> int:
        """Restore the last good state and return its step; `error` is raised where there is none."""
        found = on_rank_zero(self.checkpoints.newest_whole)
        if found is None:
            raise error
        step = int(found[1]["step"])
        self.load_state(found[1])
        self.tracker.rewind(step)
        self.pace.restart(step)
        return step

    def recovered(self) -> dict[str, Any]:
        """What the run changed about itself, for its status; empty where it changed nothing."""
        facts: dict[str, Any] = {}
        if self.rollbacks:
            facts |= {"rollbacks": self.rollbacks, "rate_scale": self.gan.rate_scale}
        if self.schedule.fits_memory:
            facts["accumulate"] = self.schedule.accumulate
        return facts

    def _remember(self, metrics: dict[str, Tensor]) -> None:
        if not self.running.names:
            self.running = RunningMeans(list(metrics)).to(self.gan.device)
        self.running.update(metrics, self.gan.step_on_device)

    def _do_what_is_due(self, stop: Stop, *, stopping: bool) -> None:
        """Log, sample, score, save. The checkpoint comes last, so that it holds all that was logged before it."""
        last = self.step == self.schedule.steps

        def due(every: int) -> bool:
            return last or self.step % every == 0

        save = due(self.schedule.checkpoint_every) or stopping or (self.unsaved and due(self.schedule.log_every))
        best = False
        if save or any(
            due(every) for every in (self.schedule.log_every, self.schedule.sample_every, self.scoring.evaluator.every)
        ):
            require_finite(self.gan, self.running, self.checkpoints.steps())
        if due(self.schedule.log_every):
            self._log()
        if due(self.schedule.sample_every):
            on_rank_zero(self._sample)
        if due(self.scoring.evaluator.every):
            best = self.scoring.score(self.step, stop)
        # A run that stops early ends here, so this is its last checkpoint.
        if save or best or self.scoring.watch.over:
            self._save(best=best, last=last or stopping or self.scoring.watch.over)

    def _save(self, *, best: bool = False, last: bool) -> None:
        """Write a checkpoint. If that fails it is tried again at the next log point, unless it is the last.

        Raises:
            UserError: it is the last.
        """
        state = self.state()

        def saved() -> bool:
            try:
                self.checkpoints.save(state, self.step, best=best)
            except (UserError, OSError, MemoryError) as error:
                reason = str(error) or repr(error)
                good = self.checkpoints.steps()
                there = f"the last good checkpoint is {good[-1]}" if good else "there is no checkpoint yet"
                if last:
                    raise UserError(f"the last checkpoint, of step {self.step}, is lost: {reason}; {there}") from error
                log.warning("step %d: %s; %s; training continues and tries again soon", self.step, reason, there)
                return False
            return True

        self.unsaved = not on_rank_zero(saved)

    def _log(self) -> None:
        values = self.running.compute()
        self.running.reset()
        rate = self.pace.lap(self.step)
        health = {name: values[name] for name in self.gan.objective.health_names()}
        won = self.gan.objective.loss.discriminator_has_won(health)
        self.watch.look_at_losses(values["loss/generator"], self.step, won=won)
        values |= {
            "learning_rate/generator": float(self.gan.g_optimizer.param_groups[0]["lr"]),
            "learning_rate/discriminator": float(self.gan.d_optimizer.param_groups[0]["lr"]),
            "speed/steps_per_s": rate,
            "speed/images_per_s": rate * self.schedule.batch_size * self.schedule.d_steps,
            "progress/epoch": float(self.gan.stream.epoch),
            **self.gan.precision.figures(),
            **_memory(self.gan.device),
        }
        self.tracker.scalars(self.step, values)
        shown = {"D": values["loss/discriminator"], "G": values["loss/generator"]}
        self.tracker.report(self.step, shown | {name.rpartition("/")[2]: value for name, value in health.items()})

    def _sample(self) -> None:
        """Draw a grid from fixed latents: a row for each class, or a square without labels."""
        per_class = self.schedule.samples_per_class
        rows = self.gan.generator.num_classes or per_class
        # From fewer batches than for a score: a grid must stay cheap, also on a CPU.
        try:
            sampler = self.sampler(standing_batches=4, batch_norm=self.schedule.sample_batch_norm)
            images = sampler.sample(rows * per_class, seed=0)
        except UserError as error:
            # The last update made a weight NaN or infinite; the next step's terms would show it.
            raise DivergedError(f"step {self.step}: {error}") from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("step %d: no sample grid (out of memory); training continues", self.step)
            return
        if self.gan.generator.num_classes:
            # The sampler takes the classes in turn: (n K, ...) -> (n, K, ...) -> (K n, ...), a row a class.
            images = images.reshape(per_class, rows, *images.shape[1:]).transpose(0, 1).flatten(0, 1)
        self.watch.look_at_samples(images, self.step)
        self.tracker.image("samples", grid(images, columns=per_class), self.step)

    def state(self) -> State:
        """All that a bit-exact resume needs, as tensors and builtins."""
        return {
            **self.gan.state(),
            "running": {"names": self.running.names, "sums": self.running.shared_state()},
            "watch": self.watch.state_dict(),
            "best": self.scoring.watch.state_dict(),
            "rollbacks": self.rollbacks,
            "classes": list(self.images.classes),
            "config": self.config,
        }

    def load_state(self, state: State) -> None:
        """Restore `state`.

        Raises:
            UserError: it belongs to other networks or to other data.
        """
        require_classes(state, self.images.classes)
        self.gan.load_state(state)
        self.running = RunningMeans(state["running"]["names"])
        self.running.load_state_dict(state["running"]["sums"])
        # Loading replaces its tensors by those of the checkpoint, which are on the CPU.
        self.running.to(self.gan.device)
        self.watch.load_state_dict(state["watch"])
        self.scoring.watch.load_state_dict(state["best"])
        self.rollbacks = int(state["rollbacks"])
        self.schedule = self.gan.schedule


def _spread_out(images: Tensor, n: int) -> Tensor:
    """At most n images, taken at even distances."""
    return images[torch.linspace(0, len(images) - 1, min(n, len(images))).round().long()]


def _memory(device: torch.device) -> dict[str, float]:
    """Peak device memory in GiB, on a device that has its own."""
    return {"memory/peak_gib": torch.cuda.max_memory_allocated(device) / 2**30} if device.type == "cuda" else {}
