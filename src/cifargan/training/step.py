"""One iteration of the two-player gan. Everything here stays on the device; nothing waits for the host."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from cifargan import distributed
from cifargan.data.stream import ImageStream
from cifargan.distributed import average_gradients, draw_shard
from cifargan.models.interface import Discriminator, DiscriminatorOutput, Generator
from cifargan.models.spectral import normalised_together, power_iteration_
from cifargan.objectives.adversarial import AdversarialLoss
from cifargan.objectives.augment import Augment
from cifargan.objectives.classification import ClassificationLoss
from cifargan.objectives.regularizers import Regularizer
from cifargan.runs.checkpoint import State
from cifargan.training.cuda_graph import CapturedStep
from cifargan.training.ema import WeightAverage
from cifargan.training.exhaustion import is_out_of_memory
from cifargan.training.memory import Undo, may_try_again
from cifargan.training.precision import Precision
from cifargan.training.restoring import load_network, load_optimizer
from cifargan.training.rng import restore_rng, rng_state
from cifargan.training.schedule import Schedule
from cifargan.training.speed import PLAIN, Switches

log = logging.getLogger(__name__)

Metrics: TypeAlias = dict[str, Tensor]  # 0-dim tensors on the device


class GANStep:
    """A generator against a discriminator (Goodfellow et al. 2014).

    Takes built objects and knows no model, loss or dataset by name.

    Args:
        generator: the network that is kept.
        discriminator: its opponent.
        loss: what the two disagree about.
        regularizer: added to the discriminator's loss.
        classification: what an auxiliary head is trained by.
        augment: what both kinds of images go through before the discriminator sees them.
        stream: real images, in micro-batches.
        g_optimizer: of the generator.
        d_optimizer: of the discriminator.
        ema: moving average of the generator.
        precision: number format of the forward passes.
        schedule: how many updates of which size.
        num_classes: K, the classes that labels for generated images are drawn from.
        device: where all of it lies.
        switches: what makes a round fast; the networks and optimisers have been made to fit.
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
        precision: Precision,
        schedule: Schedule,
        num_classes: int,
        device: torch.device,
        switches: Switches = PLAIN,
    ) -> None:
        self.generator = generator.train()
        self.discriminator = discriminator.train()
        self.loss = loss
        self.regularizer = regularizer
        self.classification = classification
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
        self.switches = switches
        self.memory_format = torch.channels_last if switches.channels_last else torch.contiguous_format
        # The arithmetic is compiled as a whole; drawing, updating and counting are few calls as they stand.
        self.discriminator_terms = switches.compiled(self._discriminator_terms)
        self.generator_terms = switches.compiled(self._generator_terms)
        self.rate_scale = 1.0  # of both learning rates; lowered where a run had diverged
        self.step = 0  # generator updates done
        self.step_on_device = torch.zeros((), dtype=torch.int64, device=device)
        self.updating = False  # whether weights may have changed since the last update began
        self.round = self._recorded_play()

    def iterate(self) -> Metrics:
        """Play one round: the discriminator's updates, the generator's one, the average."""
        self.prepare()
        metrics = self.round()
        self.step += 1
        return metrics

    def prepare(self) -> None:
        """The host's part of a round: put every number that it decides where the device will look for it."""
        self._set_learning_rates()
        self.ema.prepare(self.step + 1)
        self.stream.advance(self.schedule.d_steps * self.schedule.accumulate)

    def play(self) -> Metrics:
        """The device's part of a round, `prepare` done. Asks nothing of the host, so it can be recorded and replayed."""
        # First the discriminator learns to tell real from fake, from a generator that does not change meanwhile ...
        with self._normalised(self.generator, trained=False):
            for _ in range(self.schedule.d_steps):
                metrics = self._fitted(self.discriminator_step)
        # ... then the generator learns to fool it, ...
        metrics |= self._fitted(self.generator_step)
        self.step_on_device += 1
        # ... and the average of its weights, which is what is kept, follows.
        self.ema.update()
        return metrics

    def _fitted(self, update: Callable[[], Metrics]) -> Metrics:
        """One update, in smaller parts where memory runs out before it has changed a weight, if that is wanted."""
        self.updating = False
        if not (self.schedule.fits_memory and may_try_again(self.device)):
            return update()
        networks = (self.generator, self.discriminator, self.regularizer)
        undo = Undo(
            tensors=[*(buffer for network in networks for buffer in network.buffers()), self.stream.taken],
            generators=[self.stream.generator],
            optimizers=[self.g_optimizer, self.d_optimizer],
            device=self.device,
        )
        while True:
            try:
                return update()
            except Exception as error:
                if self.updating or not is_out_of_memory(error) or not self.split_further():
                    raise
            # Here and not above, where the error still holds all that was computed.
            undo()

    def split_further(self) -> bool:
        """Split the batch into more micro-batches; whether that was possible."""
        schedule = self.schedule.split_further()
        if schedule is not None:
            self.set_schedule(schedule)
            log.warning(
                "step %d: out of memory: from here on the batch of %d is taken in %d parts of %d (trainer.accumulate=%d)",
                self.step + 1,
                schedule.batch_size,
                schedule.accumulate,
                schedule.micro_batch,
                schedule.accumulate,
            )
        return schedule is not None

    def set_schedule(self, schedule: Schedule) -> None:
        """Go on with the same batch in other parts."""
        self.schedule = schedule
        self.stream.batch_size = schedule.micro_batch

    def discriminator_step(self) -> Metrics:
        """One update of the discriminator on real and generated images."""
        parts = []
        for _ in range(self.schedule.accumulate):
            x, y = self.stream.take()
            z, y_fake = self._latents(len(y))
            terms, part = self.discriminator_terms(x, y, z, y_fake)
            self._descend(terms)
            parts.append({**_detached(terms), **part})
        average_gradients(self.discriminator)
        self.updating = True
        gradient_norm = self.precision.step(self.d_optimizer)
        self.loss.constrain(self.discriminator)
        power_iteration_(self.discriminator, together=self.switches.batched_spectral_norm)
        return {**_mean_of(parts), "gradient_norm/discriminator": gradient_norm}

    def generator_step(self) -> Metrics:
        """One update of the generator through the discriminator."""
        parts = []
        with frozen(self.discriminator):
            for _ in range(self.schedule.accumulate):
                z, y = self._latents(self.schedule.micro_batch // distributed.num_shards())
                terms, part = self.generator_terms(z, y)
                self._descend(terms)
                parts.append({**_detached(terms), **part})
        average_gradients(self.generator)
        self.updating = True
        gradient_norm = self.precision.step(self.g_optimizer)
        power_iteration_(self.generator, together=self.switches.batched_spectral_norm)
        return {**_mean_of(parts), "gradient_norm/generator": gradient_norm}

    def _descend(self, terms: Metrics) -> None:
        """Add the gradient of the sum of all terms, as one micro-batch of several."""
        self.precision.backward(sum(terms.values(), torch.zeros((), device=self.device)) / self.schedule.accumulate)

    def _discriminator_terms(self, x: Tensor, y: Tensor, z: Tensor, y_fake: Tensor) -> tuple[Metrics, Metrics]:
        """What the discriminator descends on one micro-batch, term by term, and what else is to be known of it."""
        with self._normalised(self.discriminator), self.precision.autocast():
            with torch.no_grad():
                x_fake = self.generator(z, y_fake).float()
            x_real = self.augment(x.contiguous(memory_format=self.memory_format))
            views = self.regularizer.views(x_real)
            images = [x_real, *views, self.augment(x_fake)]
            real, *seen, fake = self._judge(images, [y, *(y for _ in views), y_fake])
        adversarial = self.loss.discriminator(real.logits, fake.logits)
        penalty = self.regularizer(real.logits, fake.logits, self.step_on_device, *(view.logits for view in seen))
        terms = {
            "loss/discriminator": adversarial,
            "loss/regularizer": penalty,
            **_where_judged(real, "loss/class_real", self.classification.discriminator(real, y)),
        }
        return terms, {
            "logit/real": real.logits.detach().mean(),
            "logit/fake": fake.logits.detach().mean(),
            "accuracy/real": (real.logits.detach() > 0).float().mean(),
            "accuracy/fake": (fake.logits.detach() < 0).float().mean(),
            **_class_accuracy("real", real, y),
        }

    def _generator_terms(self, z: Tensor, y: Tensor) -> tuple[Metrics, Metrics]:
        """What the generator descends on one micro-batch, term by term, and what else is to be known of it."""
        with (
            self._normalised(self.generator),
            self._normalised(self.discriminator, trained=False),
            self.precision.autocast(),
        ):
            fake: DiscriminatorOutput = self.discriminator(self.augment(self.generator(z, y).float()), y)
        terms = {
            "loss/generator": self.loss.generator(fake.logits),
            **_where_judged(fake, "loss/class_fake", self.classification.generator(fake, y)),
        }
        return terms, _class_accuracy("fake", fake, y)

    def _judge(self, x: list[Tensor], y: list[Tensor]) -> list[DiscriminatorOutput]:
        """Judge several batches of images, in one pass where the discriminator allows it."""
        if self.discriminator.joint_pass:
            joint: DiscriminatorOutput = self.discriminator(torch.cat(x), torch.cat(y))
            return joint.split([len(part) for part in x])
        return [self.discriminator(*pair) for pair in zip(x, y, strict=True)]

    def _normalised(self, network: nn.Module, *, trained: bool = True) -> AbstractContextManager[None]:
        """While entered, the weights of a network are normalised once and together, if that is switched on."""
        if self.switches.batched_spectral_norm:
            return normalised_together(network, trained=trained)
        return nullcontext()

    def _recorded_play(self) -> Callable[[], Metrics]:
        if self.switches.graph:
            return CapturedStep(self.play, tensors=self.tensors, generators=[self.stream.generator], device=self.device)
        return self.play

    def tensors(self) -> list[Tensor]:
        """Everything that a round changes in place, random generators apart."""
        networks = (self.generator, self.discriminator, self.ema.generator, self.regularizer)
        moments = [
            value
            for optimizer in (self.g_optimizer, self.d_optimizer)
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        weights = [tensor.detach() for network in networks for tensor in (*network.parameters(), *network.buffers())]
        return [*weights, *moments, *self.precision.tensors(), self.step_on_device, self.stream.taken]

    def _latents(self, n: int) -> tuple[Tensor, Tensor]:
        """Draw z (n, Z) from N(0, I) and y (n,) uniformly, on the device."""
        z = draw_shard(lambda rows: torch.randn(rows, self.generator.latent_dim, device=self.device), n)
        y = draw_shard(lambda rows: torch.randint(self.num_classes, (rows,), device=self.device), n)
        return z, y

    def _set_learning_rates(self) -> None:
        factor = self.rate_scale * self.schedule.learning_rate_factor(self.step)
        for optimizer, initial in self.initial_rates:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    # A recorded update reads its rate from the device.
                    group["lr"].fill_(initial * factor)
                else:
                    group["lr"] = initial * factor

    def state(self) -> State:
        """All that a bit-exact continuation of the gan needs, as tensors and builtins."""
        return {
            "step": self.step,
            "switches": asdict(self.switches),
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": self.ema.generator.state_dict(),
            "regularizer": self.regularizer.state_dict(),
            "g_optimizer": {"kind": type(self.g_optimizer).__name__, **self.g_optimizer.state_dict()},
            "d_optimizer": {"kind": type(self.d_optimizer).__name__, **self.d_optimizer.state_dict()},
            "precision": self.precision.state_dict(),
            "stream": self.stream.state_dict(),
            "rng": rng_state(self.device),
            "rate_scale": self.rate_scale,
            "accumulate": self.schedule.accumulate,
        }

    def load_state(self, state: State) -> None:
        """Go on from `state`.

        Raises:
            UserError: it belongs to other networks, other optimisers or other data.
        """
        load_network(self.generator, state["generator"], "generator")
        load_network(self.discriminator, state["discriminator"], "discriminator")
        load_network(self.ema.generator, state["ema"], "averaged generator")
        load_network(self.regularizer, state["regularizer"], "regularizer")
        load_optimizer(self.g_optimizer, state["g_optimizer"], "generator")
        load_optimizer(self.d_optimizer, state["d_optimizer"], "discriminator")
        for optimizer in (self.g_optimizer, self.d_optimizer):
            # Those of an update that was broken off.
            optimizer.zero_grad(set_to_none=True)
        self.precision.load_state_dict(state["precision"])
        self.stream.load_state_dict(state["stream"])
        self.step = state["step"]
        self.step_on_device.fill_(self.step)
        restore_rng(state["rng"], self.device)
        self.rate_scale = float(state["rate_scale"])
        parts = state["accumulate"]
        if self.schedule.fits_memory and parts > self.schedule.accumulate and self.schedule.batch_size % parts == 0:
            self.set_schedule(replace(self.schedule, accumulate=parts))
        # The optimisers' moments are other tensors now.
        self.round = self._recorded_play()


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """While entered, a network's own weights get no gradients: the other player's step has no use for them.

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


def _mean_of(parts: list[Metrics]) -> Metrics:
    """The mean over micro-batches."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}


def _detached(terms: Metrics) -> Metrics:
    return {name: term.detach() for name, term in terms.items()}


def _where_judged(output: DiscriminatorOutput, name: str, term: Tensor) -> Metrics:
    """A class term, where there is a head that has an opinion on classes; it is nothing anywhere else."""
    return {} if output.class_logits is None else {name: term}


def _class_accuracy(kind: str, output: DiscriminatorOutput, y: Tensor) -> Metrics:
    """How often the auxiliary head is right, where there is one."""
    if output.class_logits is None:
        return {}
    hits = output.class_logits.detach().argmax(dim=1) == y
    return {f"accuracy/class_{kind}": hits.float().mean()}
