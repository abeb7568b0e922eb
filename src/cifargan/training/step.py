"""One iteration of GAN training: the discriminator's updates, the generator's, the average. Nothing waits for the host."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from cifargan.data.stream import ImageStream
from cifargan.distributed import average_gradients, draw_shard, num_shards
from cifargan.errors import is_out_of_memory
from cifargan.models.interface import Discriminator, Generator
from cifargan.models.spectral import normalised_together, power_iteration_
from cifargan.objectives.base import Augment, Batch, Critic
from cifargan.objectives.objective import Objective, Terms
from cifargan.runs.checkpoint import State
from cifargan.training.cuda_graph import CapturedSteps
from cifargan.training.ema import WeightAverage
from cifargan.training.precision import Precision
from cifargan.training.schedule import Schedule
from cifargan.training.speed import PLAIN, SpeedOptions
from cifargan.training.state import load_network, load_optimizer, restore_rng, rng_state

log = logging.getLogger(__name__)


class GANStep:
    """A generator and a discriminator that are trained against each other (Goodfellow et al. 2014).

    Takes built objects and knows no model, loss or data set by name.

    Args:
        generator: maps z, y to images.
        discriminator: judges images.
        objective: what both minimise.
        augment: applied to all that the discriminator sees.
        stream: real images, in micro-batches.
        g_optimizer: of the generator.
        d_optimizer: of the discriminator.
        ema: moving average of the generator.
        precision: number format of the forward passes.
        schedule: how many updates of which size.
        num_classes: K, the classes that labels for generated images are drawn from.
        device: where all of it lies.
        speed: what makes an iteration fast; the networks and optimisers fit them.
    """

    def __init__(
        self,
        *,
        generator: Generator,
        discriminator: Discriminator,
        objective: Objective,
        augment: Augment,
        stream: ImageStream,
        g_optimizer: torch.optim.Optimizer,
        d_optimizer: torch.optim.Optimizer,
        ema: WeightAverage,
        precision: Precision,
        schedule: Schedule,
        num_classes: int,
        device: torch.device,
        speed: SpeedOptions = PLAIN,
    ) -> None:
        self.generator = generator.train()
        self.discriminator = discriminator.train()
        self.objective = objective
        self.augment = augment
        self.stream = stream
        self.g_optimizer = g_optimizer
        self.d_optimizer = d_optimizer
        self.ema = ema
        self.precision = precision
        self.schedule = schedule
        self.num_classes = num_classes
        self.device = device
        self.initial_rates = [
            (optimizer, float(optimizer.param_groups[0]["lr"])) for optimizer in (g_optimizer, d_optimizer)
        ]
        self.speed = speed
        self.memory_format = torch.channels_last if speed.channels_last else torch.contiguous_format
        self.critic = Critic(discriminator, augment, autocast=precision.autocast, scale=precision.scale)
        # The arithmetic is compiled as a whole; drawing, updating and counting are few calls as they stand.
        self.generator_terms = speed.compiled(self._generator_terms)
        self.discriminator_terms = self._discriminator_terms
        if twice := objective.differentiating_twice():
            if speed.compile != "off":
                log.info("trainer.compile: off for the discriminator, since %s differentiates twice", twice[0])
        else:
            self.discriminator_terms = speed.compiled(self._discriminator_terms)
        self.rate_scale = 1.0  # of both learning rates; lowered by a rollback
        self.step = 0  # generator updates done
        self.step_on_device = torch.zeros((), dtype=torch.int64, device=device)
        self.run = self._captured()

    def iterate(self) -> Terms:
        """Train for one iteration; returns what to log, as 0-dim tensors on the device."""
        self.prepare()
        metrics = self.run(self.objective.due(self.step))
        self.step += 1
        return metrics

    def prepare(self) -> None:
        """The host's part of an iteration: put every number that it decides where the device looks for it."""
        self._set_learning_rates()
        self.ema.prepare(self.step + 1)
        updates = self.schedule.d_steps + self.objective.pairs_with_real
        self.stream.advance(updates * self.schedule.accumulate)

    def iteration(self, due: frozenset[str]) -> Terms:
        """The device's part of an iteration, after `prepare`. It asks nothing of the host, so it can be captured.

        Args:
            due: the penalties that this iteration takes.
        """
        # First the discriminator learns to tell real from fake, while the generator does not change ...
        with self._normalised(self.generator, trained=False):
            for _ in range(self.schedule.d_steps):
                metrics = self.discriminator_step(due)
        # ... then the generator learns to fool it, ...
        metrics |= self.generator_step()
        self.step_on_device += 1
        # ... and the average of its weights, which is what is kept, follows.
        self.ema.update()
        return metrics

    def discriminator_step(self, due: frozenset[str]) -> Terms:
        """One update of the discriminator on real and generated images."""
        parts = []
        for _ in range(self.schedule.accumulate):
            x, y = self.stream.take()
            z, y_fake = self._latents(len(y), y if self.objective.pairs_with_real else None)
            terms, figures = self.discriminator_terms(x, y, z, y_fake, due)
            parts.append(self._descend(terms) | figures)
        norm = self._update(self.discriminator, self.d_optimizer)
        self.objective.loss.after_update(self.discriminator)
        self.augment.after_update()
        power_iteration_(self.discriminator, together=self.speed.batched_spectral_norm)
        return {**_mean_of(parts), "gradient_norm/discriminator": norm}

    def generator_step(self) -> Terms:
        """One update of the generator through the discriminator."""
        parts = []
        with frozen(self.discriminator):
            for _ in range(self.schedule.accumulate):
                real = self.stream.take() if self.objective.pairs_with_real else None
                z, y = self._latents(self.schedule.micro_batch // num_shards(), None if real is None else real[1])
                terms, figures = self.generator_terms(z, y, None if real is None else real[0])
                parts.append(self._descend(terms) | figures)
        norm = self._update(self.generator, self.g_optimizer)
        power_iteration_(self.generator, together=self.speed.batched_spectral_norm)
        return {**_mean_of(parts), "gradient_norm/generator": norm}

    def _discriminator_terms(
        self, x: Tensor, y: Tensor, z: Tensor, y_fake: Tensor, due: frozenset[str]
    ) -> tuple[Terms, Terms]:
        """The discriminator's terms on one micro-batch, and further figures."""
        with self._normalised(self.discriminator):
            with torch.no_grad(), self.precision.autocast():
                x_fake = self.generator(z, y_fake).float()
            real = Batch(x.contiguous(memory_format=self.memory_format), y)
            return self.objective.discriminator(self.critic, real, Batch(x_fake, y_fake), self.step_on_device, due)

    def _generator_terms(self, z: Tensor, y: Tensor, x: Tensor | None) -> tuple[Terms, Terms]:
        """The generator's terms on one micro-batch, and further figures."""
        with self._normalised(self.generator), self._normalised(self.discriminator, trained=False):
            with self.precision.autocast():
                x_fake = self.generator(z, y).float()
            real = None if x is None else Batch(x.contiguous(memory_format=self.memory_format), y)
            return self.objective.generator(self.critic, Batch(x_fake, y), real)

    def _descend(self, terms: Terms) -> Terms:
        """Add the gradient of the sum of all terms, as one micro-batch of several; returns the terms as figures."""
        total = sum(terms.values(), torch.zeros((), device=self.device))
        self.precision.backward(total / self.schedule.accumulate)
        return {name: term.detach() for name, term in terms.items()}

    def _update(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
        """Update a network by its gradients, averaged over all ranks; returns their norm."""
        average_gradients(network)
        return self.precision.step(optimizer)

    def _normalised(self, network: nn.Module, *, trained: bool = True) -> AbstractContextManager[None]:
        """While entered, the weights of a network are normalised once and together, if that is switched on."""
        if self.speed.batched_spectral_norm:
            return normalised_together(network, trained=trained)
        return nullcontext()

    def _latents(self, n: int, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw z (n, Z) from N(0, I), and y (n,) uniformly where none is given."""
        z = draw_shard(lambda rows: torch.randn(rows, self.generator.latent_dim, device=self.device), n)
        if y is None:
            y = draw_shard(lambda rows: torch.randint(self.num_classes, (rows,), device=self.device), n)
        return z, y

    def _set_learning_rates(self) -> None:
        factor = self.rate_scale * self.schedule.learning_rate_factor(self.step)
        for optimizer, initial in self.initial_rates:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    # A captured update reads its rate from the device.
                    group["lr"].fill_(initial * factor)
                else:
                    group["lr"] = initial * factor

    def _captured(self) -> Callable[[frozenset[str]], Terms]:
        if self.speed.graph:
            return CapturedSteps(
                self.iteration, tensors=self.tensors, generators=[self.stream.generator], device=self.device
            )
        return self.iteration

    def tensors(self) -> list[Tensor]:
        """Everything that an iteration changes in place, random generators apart."""
        networks = (self.generator, self.discriminator, self.ema.generator, self.objective, self.augment)
        moments = [
            value
            for optimizer in (self.g_optimizer, self.d_optimizer)
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        weights = [tensor.detach() for network in networks for tensor in (*network.parameters(), *network.buffers())]
        return [*weights, *moments, *self.precision.tensors(), self.step_on_device, self.stream.taken]

    def fit_memory(self) -> None:
        """Split the batch into as many micro-batches as memory asks for, by trial of one iteration that is undone.

        Raises:
            torch.OutOfMemoryError: single images do not fit either.
        """
        before = copy.deepcopy(self.state())
        fits = False
        while not fits:
            try:
                self.prepare()
                self.iteration(frozenset(self.objective.penalties))
                fits = True
            except Exception as error:
                if not is_out_of_memory(error) or not self._split_further():
                    raise
            # Here and not above, where the error still holds all that was computed.
            self.load_state({**before, "accumulate": self.schedule.accumulate})

    def _split_further(self) -> bool:
        """Split the batch into more micro-batches; whether that was possible."""
        schedule = self.schedule.split_further()
        if schedule is not None:
            self._set_schedule(schedule)
            log.warning(
                "out of memory: the batch of %d is taken in %d parts of %d (trainer.accumulate=%d)",
                schedule.batch_size,
                schedule.accumulate,
                schedule.micro_batch,
                schedule.accumulate,
            )
        return schedule is not None

    def _set_schedule(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.stream.batch_size = schedule.micro_batch

    def state(self) -> State:
        """All that a bit-exact resume needs, as tensors and builtins."""
        return {
            "step": self.step,
            "speed": asdict(self.speed),
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": self.ema.generator.state_dict(),
            "objective": self.objective.state_dict(),
            "augment": self.augment.state_dict(),
            "g_optimizer": {"kind": type(self.g_optimizer).__name__, **self.g_optimizer.state_dict()},
            "d_optimizer": {"kind": type(self.d_optimizer).__name__, **self.d_optimizer.state_dict()},
            "precision": self.precision.state_dict(),
            "stream": self.stream.state_dict(),
            "rng": rng_state(self.device),
            "rate_scale": self.rate_scale,
            "accumulate": self.schedule.accumulate,
        }

    def load_state(self, state: State) -> None:
        """Restore `state`.

        Raises:
            UserError: it belongs to other networks, penalties, optimisers or data.
        """
        load_network(self.generator, state["generator"], "generator")
        load_network(self.discriminator, state["discriminator"], "discriminator")
        load_network(self.ema.generator, state["ema"], "averaged generator")
        load_network(self.objective, state["objective"], "regularizer")
        load_network(self.augment, state["augment"], "augmentation")
        load_optimizer(self.g_optimizer, state["g_optimizer"], "generator")
        load_optimizer(self.d_optimizer, state["d_optimizer"], "discriminator")
        for optimizer in (self.g_optimizer, self.d_optimizer):
            # Those of an interrupted update.
            optimizer.zero_grad(set_to_none=True)
        self.precision.reset()
        self.precision.load_state_dict(state["precision"])
        self.stream.load_state_dict(state["stream"])
        self.step = state["step"]
        self.step_on_device.fill_(self.step)
        restore_rng(state["rng"], self.device)
        self.rate_scale = float(state["rate_scale"])
        parts = state["accumulate"]
        if self.schedule.fits_memory and parts > self.schedule.accumulate and self.schedule.batch_size % parts == 0:
            self._set_schedule(replace(self.schedule, accumulate=parts))
        # The optimisers' moments are other tensors now.
        self.run = self._captured()


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """While entered, a network's own weights get no gradients: the other network's step has no use for them.

    Those that got none before get none afterwards either.
    """
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)


def _mean_of(parts: list[Terms]) -> Terms:
    """The mean over micro-batches."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
