"""The one training loop. It knows no model, loss or dataset by name."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cifargan.data.sources import ImageSet
from cifargan.data.stream import ImageStream
from cifargan.errors import UserError
from cifargan.evaluation.evaluator import Evaluator
from cifargan.images import grid, to_uint8
from cifargan.models.interface import Discriminator, DiscriminatorOutput, Generator
from cifargan.models.layers import power_iteration_
from cifargan.objectives.adversarial import AdversarialLoss
from cifargan.objectives.augment import Augment
from cifargan.objectives.classification import ClassificationLoss
from cifargan.objectives.regularizers import Regularizer
from cifargan.sampling import Sampler
from cifargan.training.checkpoint import CheckpointStore, State
from cifargan.training.ema import WeightAverage
from cifargan.training.interruption import InterruptedRunError, Interruption
from cifargan.training.optimizers import LinearDecay
from cifargan.training.precision import Precision
from cifargan.training.rng import restore_rng, rng_state
from cifargan.training.running import RunningMeans
from cifargan.training.tracking import Tracker
from cifargan.training.watch import CollapseWatch, spread

log = logging.getLogger(__name__)

Metrics = dict[str, Tensor]  # 0-dim tensors on the device


class DivergedError(UserError):
    """A loss, gradient or weight stopped being a number."""


@dataclass(frozen=True)
class Schedule:
    """How long, how much, how often.

    Args:
        steps: generator updates in all.
        batch_size: images of each kind in one update.
        d_steps: discriminator updates for each generator update.
        accumulate: micro-batches that an update is split into.
        log_every: steps between log points, the only places where the host waits for the device.
        sample_every: steps between sample grids.
        samples_per_class: fixed latents of each class in a grid.
        checkpoint_every: steps between checkpoints.
        keep: newest checkpoints to keep, beside the best.
        lr_decay_from: the step from which the learning rates fall linearly to 0 at `steps`; None: constant.
    """

    steps: int
    batch_size: int
    d_steps: int
    accumulate: int
    log_every: int
    sample_every: int
    samples_per_class: int
    checkpoint_every: int
    keep: int
    lr_decay_from: int | None = None

    def __post_init__(self) -> None:
        """Reject what the loop could not carry out."""
        for name, value in vars(self).items():
            if name != "lr_decay_from" and value < 1:
                raise UserError(f"trainer.{name}={value}: must be at least 1")
        if self.batch_size % self.accumulate:
            raise UserError(
                f"trainer.batch_size={self.batch_size} does not divide into trainer.accumulate={self.accumulate} parts"
            )

    @property
    def micro_batch(self) -> int:
        """Images of each kind that are in memory at once."""
        return self.batch_size // self.accumulate


@dataclass(frozen=True)
class Result:
    """How a run ended: its last step, and its best score under the evaluator's own name."""

    step: int
    best_step: int | None
    best_score: float | None


class Trainer:
    """Plays the two-player game of Goodfellow et al. (2014) and writes down what happens.

    Takes built objects. The discriminator is updated on `schedule.d_steps` batches, then the generator once; both see
    `augment`ed images. Everything in the two step methods stays on the device.
    """

    def __init__(
        self,
        *,
        generator: Generator,
        discriminator: Discriminator,
        loss: AdversarialLoss,
        regularizer: Regularizer,
        classification: ClassificationLoss,
        augment: Augment,
        stream: ImageStream,
        g_optimizer: torch.optim.Optimizer,
        d_optimizer: torch.optim.Optimizer,
        ema: WeightAverage,
        evaluator: Evaluator,
        tracker: Tracker,
        checkpoints: CheckpointStore,
        schedule: Schedule,
        precision: Precision,
        device: torch.device,
        images: ImageSet,
        config: dict[str, Any],
    ) -> None:
        self.generator = generator
        self.discriminator = discriminator
        self.loss = loss
        self.regularizer = regularizer
        self.classification = classification
        self.augment = augment
        self.stream = stream
        self.g_optimizer = g_optimizer
        self.d_optimizer = d_optimizer
        self.decay = LinearDecay([g_optimizer, d_optimizer], start=schedule.lr_decay_from, end=schedule.steps)
        self.ema = ema
        self.evaluator = evaluator
        self.tracker = tracker
        self.checkpoints = checkpoints
        self.schedule = schedule
        self.precision = precision
        self.device = device
        self.images = images
        self.classes = images.classes
        self.reals = _spread_out(images.images, 100)
        self.config = config

        self.step = 0
        self.step_on_device = torch.zeros((), dtype=torch.int64, device=device)
        self.running = RunningMeans([])
        self.best_score: float | None = None
        self.best_step: int | None = None
        self.last_log = (time.monotonic(), 0)
        self.watch = CollapseWatch(real_spread=spread(self.reals))

    # ------------------------------------------------------------------------------------------------ the loop

    def fit(self) -> Result:
        """Train until `schedule.steps`.

        Raises:
            DivergedError: a term is no longer finite; the message names the last good checkpoint.
            InterruptedRunError: a signal asked the run to stop; its checkpoint is written.
        """
        self.generator.train()
        self.discriminator.train()
        self.last_log = (time.monotonic(), self.step)
        if self.step == 0:
            self._show_reals()
        with self.tracker, Interruption() as interruption:
            while self.step < self.schedule.steps:
                self.decay.apply(self.step)
                # First the discriminator learns to tell real from fake ...
                for _ in range(self.schedule.d_steps):
                    metrics = self.discriminator_step()
                # ... then the generator learns to fool it, ...
                metrics |= self.generator_step()
                # ... and the average of its weights, which is what we keep, follows.
                self.step += 1
                self.step_on_device += 1
                self.ema.update(self.step)
                # The figures stay on the device until a log point.
                self._remember(metrics)
                self.tracker.advance(self.step)
                self._milestones(stopping=interruption.requested is not None)
                if interruption.requested is not None:
                    raise InterruptedRunError(interruption.requested, f"stopped at step {self.step}, checkpoint written")
        return Result(self.step, self.best_step, self.best_score)

    # ------------------------------------------------------------------------------------------- the GAN's steps

    def discriminator_step(self) -> Metrics:
        """One update of the discriminator on real and generated images."""
        parts = []
        for _ in range(self.schedule.accumulate):
            x, y = self.stream.next()
            z, y_fake = self._latents(len(y))
            with self.precision.autocast():
                with torch.no_grad():
                    fake_images = self.generator(z, y_fake).float()
                real, fake = self._judge(self.augment(x), y, self.augment(fake_images), y_fake)
            adversarial = self.loss.discriminator(real.logits, fake.logits)
            penalty = self.regularizer(real.logits, fake.logits, self.step_on_device)
            class_loss = self.classification.discriminator(real, y)
            self.precision.backward((adversarial + penalty + class_loss) / self.schedule.accumulate)
            parts.append(
                {
                    "loss/discriminator": adversarial.detach(),
                    "loss/regularizer": penalty.detach(),
                    "logit/real": real.logits.detach().mean(),
                    "logit/fake": fake.logits.detach().mean(),
                    "accuracy/real": (real.logits.detach() > 0).float().mean(),
                    "accuracy/fake": (fake.logits.detach() < 0).float().mean(),
                    **_class_metrics("real", real, y, class_loss),
                }
            )
        gradient_norm = self.precision.step(self.d_optimizer)
        self.loss.constrain(self.discriminator)
        power_iteration_(self.discriminator)
        return {**_mean_of(parts), "gradient_norm/discriminator": gradient_norm}

    def generator_step(self) -> Metrics:
        """One update of the generator through the discriminator."""
        parts = []
        with frozen(self.discriminator):
            for _ in range(self.schedule.accumulate):
                z, y = self._latents(self.schedule.micro_batch)
                with self.precision.autocast():
                    fake = self.discriminator(self.augment(self.generator(z, y).float()), y)
                adversarial = self.loss.generator(fake.logits)
                class_loss = self.classification.generator(fake, y)
                self.precision.backward((adversarial + class_loss) / self.schedule.accumulate)
                parts.append({"loss/generator": adversarial.detach(), **_class_metrics("fake", fake, y, class_loss)})
        gradient_norm = self.precision.step(self.g_optimizer)
        self.precision.update()
        power_iteration_(self.generator)
        return {**_mean_of(parts), "gradient_norm/generator": gradient_norm}

    def _judge(
        self, real: Tensor, y_real: Tensor, fake: Tensor, y_fake: Tensor
    ) -> tuple[DiscriminatorOutput, DiscriminatorOutput]:
        """Judge real and fake images, in one pass where the discriminator allows it."""
        if self.discriminator.joint_pass:
            both: DiscriminatorOutput = self.discriminator(torch.cat([real, fake]), torch.cat([y_real, y_fake]))
            return both.split(len(real))
        return self.discriminator(real, y_real), self.discriminator(fake, y_fake)

    def _latents(self, n: int) -> tuple[Tensor, Tensor]:
        """Draw z (n, Z) from N(0, I) and y (n,) uniformly, on the device."""
        z = torch.randn(n, self.generator.latent_dim, device=self.device)
        y = torch.randint(len(self.classes), (n,), device=self.device)
        return z, y

    # ----------------------------------------------------------------------------------------------- milestones

    def _remember(self, metrics: Metrics) -> None:
        if not self.running.names:
            self.running = RunningMeans(list(metrics)).to(self.device)
        self.running.update(metrics, self.step_on_device)

    def _milestones(self, *, stopping: bool) -> None:
        """What is due after this step. The checkpoint comes last, so that it holds all that was said before it."""
        last = self.step == self.schedule.steps
        due = {name: last or self.step % every == 0 for name, every in self._periods().items()}
        save = due["checkpoint"] or stopping
        best = False
        if due["log"] or save:
            self._check_finite()
        if due["log"]:
            self._log()
        if due["sample"]:
            self._sample()
        if due["evaluate"]:
            best = self._evaluate()
        if save or best:
            self.checkpoints.save(self.state(), self.step, best=best)

    def _periods(self) -> dict[str, int]:
        return {
            "log": self.schedule.log_every,
            "sample": self.schedule.sample_every,
            "evaluate": self.evaluator.every,
            "checkpoint": self.schedule.checkpoint_every,
        }

    def _check_finite(self) -> None:
        bad = self.running.first_bad()
        if bad is None:
            return
        term, step = bad
        good = self.checkpoints.steps()
        advice = f"the last good checkpoint is {good[-1]}" if good else "no checkpoint had been written yet"
        raise DivergedError(
            f"{term} is not finite since step {step}: the run has diverged; {advice}. "
            "Try lower learning rates (optimizer.generator.lr, optimizer.discriminator.lr) or precision=fp32"
        )

    def _log(self) -> None:
        values = self.running.compute()
        self.running.reset()
        now, (then, step_then) = time.monotonic(), self.last_log
        self.last_log = (now, self.step)
        rate = (self.step - step_then) / max(now - then, 1e-9)
        self.watch.look_at_scalars(values, self.step)
        values |= {
            "learning_rate/generator": self.g_optimizer.param_groups[0]["lr"],
            "learning_rate/discriminator": self.d_optimizer.param_groups[0]["lr"],
            "speed/steps_per_s": rate,
            "speed/images_per_s": rate * self.schedule.batch_size * self.schedule.d_steps,
            "progress/epoch": float(self.stream.epoch),
            **self.precision.figures(),
            **_memory(self.device),
        }
        self.tracker.scalars(self.step, values)
        self.tracker.report(self.step, values)

    def _sample(self) -> None:
        """A grid from latents that stay the same all through the run: a row a class, or a square when unlabelled."""
        per_class = self.schedule.samples_per_class
        rows = self.generator.num_classes or per_class
        images = self.sampler().sample(rows * per_class, seed=0)
        if self.generator.num_classes:
            # The sampler takes the classes in turn: (n K, ...) -> (n, K, ...) -> (K n, ...), a row a class.
            images = images.reshape(per_class, rows, *images.shape[1:]).transpose(0, 1).flatten(0, 1)
        self.watch.look_at_samples(images, self.step)
        self.tracker.image("samples", grid(images, columns=per_class), self.step)

    def _show_reals(self) -> None:
        self.tracker.image("reals", grid(self.reals, columns=10), 0, file="reals.png")

    def _evaluate(self) -> bool:
        """Score the averaged weights; whether this is the best score so far."""
        scores = self.evaluator.evaluate(self.sampler())
        self.tracker.scalars(self.step, scores)
        log.info("step %d  %s", self.step, "  ".join(f"{name} {value:.4g}" for name, value in scores.items()))
        self.last_log = (time.monotonic(), self.step)  # an evaluation is no training time
        score = scores.get(self.evaluator.monitor)
        if score is None or (self.best_score is not None and score >= self.best_score):
            return False
        self.best_score, self.best_step = score, self.step
        return True

    def sampler(self) -> Sampler:
        """A sampler of the averaged weights, on a copy: training goes on as if nobody had looked."""
        return Sampler(self.ema.generator, self.classes, device=self.device)

    # ---------------------------------------------------------------------------------------------- checkpoints

    def state(self) -> State:
        """All that a bit-exact continuation needs, as tensors and builtins."""
        return {
            "step": self.step,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": self.ema.generator.state_dict(),
            "g_optimizer": self.g_optimizer.state_dict(),
            "d_optimizer": self.d_optimizer.state_dict(),
            "regularizer": self.regularizer.state_dict(),
            "precision": self.precision.state_dict(),
            "stream": self.stream.state_dict(),
            "running": {"names": self.running.names, "sums": self.running.state_dict()},
            "watch": self.watch.state_dict(),
            "best": {"score": self.best_score, "step": self.best_step},
            "rng": rng_state(self.device),
            "classes": list(self.classes),
            "config": self.config,
        }

    def load_state(self, state: State) -> None:
        """Go on from `state`.

        Raises:
            UserError: it belongs to other networks or other data.
        """
        if tuple(state["classes"]) != self.classes:
            raise UserError(f"the checkpoint has the classes {state['classes']}, the data {list(self.classes)}")
        for name, network in (("generator", self.generator), ("discriminator", self.discriminator)):
            load_network(network, state[name], name)
        load_network(self.ema.generator, state["ema"], "averaged generator")
        self.g_optimizer.load_state_dict(state["g_optimizer"])
        self.d_optimizer.load_state_dict(state["d_optimizer"])
        load_network(self.regularizer, state["regularizer"], "regularizer")
        self.precision.load_state_dict(state["precision"])
        self.stream.load_state_dict(state["stream"])
        self.running = RunningMeans(state["running"]["names"]).to(self.device)
        self.running.load_state_dict(state["running"]["sums"])
        self.watch.load_state_dict(state["watch"])
        self.best_score, self.best_step = state["best"]["score"], state["best"]["step"]
        self.step = state["step"]
        self.step_on_device.fill_(self.step)
        restore_rng(state["rng"], self.device)


def load_network(network: nn.Module, state: State, name: str) -> None:
    """Load a state dict, or say in one line how it differs.

    Raises:
        UserError: a missing or superfluous tensor, or one of another shape.
    """
    own = network.state_dict()
    for key in [*own, *state]:
        if key not in state or key not in own or state[key].shape != own[key].shape:
            here, there = (tuple(d[key].shape) if key in d else "absent" for d in (own, state))
            raise UserError(f"the checkpoint is of another {name}: {key} is {there} there and {here} here")
    network.load_state_dict(state)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """While entered, no gradients for the network's own weights are computed: the generator's step has no use for them."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def _spread_out(images: Tensor, n: int) -> Tensor:
    """At most n images, taken at even distances."""
    return images[torch.linspace(0, len(images) - 1, min(n, len(images))).round().long()]


def _mean_of(parts: list[Metrics]) -> Metrics:
    """The mean over micro-batches."""
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}


def _class_metrics(kind: str, output: DiscriminatorOutput, y: Tensor, class_loss: Tensor) -> Metrics:
    """The class term and the auxiliary head's accuracy, where there is a head."""
    if output.class_logits is None:
        return {}
    hits = output.class_logits.detach().argmax(dim=1) == y
    return {f"loss/class_{kind}": class_loss.detach(), f"accuracy/class_{kind}": hits.float().mean()}


def _memory(device: torch.device) -> dict[str, float]:
    """Peak device memory in GiB, on a device that has its own."""
    return {"memory/peak_gib": torch.cuda.max_memory_allocated(device) / 2**30} if device.type == "cuda" else {}
