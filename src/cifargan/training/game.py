"""One iteration of the two-player game. Everything here stays on the device; nothing waits for the host."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cifargan.data.stream import ImageStream
from cifargan.errors import UserError
from cifargan.models.interface import Discriminator, DiscriminatorOutput, Generator
from cifargan.models.layers import power_iteration_
from cifargan.objectives.adversarial import AdversarialLoss
from cifargan.objectives.augment import Augment
from cifargan.objectives.classification import ClassificationLoss
from cifargan.objectives.regularizers import Regularizer
from cifargan.training.checkpoint import State
from cifargan.training.ema import WeightAverage
from cifargan.training.precision import Precision
from cifargan.training.rng import restore_rng, rng_state
from cifargan.training.schedule import Schedule

Metrics = dict[str, Tensor]  # 0-dim tensors on the device


class Game:
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
        self.initial_rates = [(optimizer, optimizer.param_groups[0]["lr"]) for optimizer in (g_optimizer, d_optimizer)]
        self.step = 0  # generator updates done
        self.step_on_device = torch.zeros((), dtype=torch.int64, device=device)

    def iterate(self) -> Metrics:
        """Play one round: the discriminator's updates, the generator's one, the average."""
        self._set_learning_rates()
        # First the discriminator learns to tell real from fake ...
        for _ in range(self.schedule.d_steps):
            metrics = self.discriminator_step()
        # ... then the generator learns to fool it, ...
        metrics |= self.generator_step()
        self.step += 1
        self.step_on_device += 1
        # ... and the average of its weights, which is what is kept, follows.
        self.ema.update(self.step)
        return metrics

    def discriminator_step(self) -> Metrics:
        """One update of the discriminator on real and generated images."""
        parts = []
        for _ in range(self.schedule.accumulate):
            x, y = self.stream.next()
            z, y_fake = self._latents(len(y))
            with self.precision.autocast():
                with torch.no_grad():
                    x_fake = self.generator(z, y_fake).float()
                real, fake = self._judge(self.augment(x), y, self.augment(x_fake), y_fake)
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
        power_iteration_(self.generator)
        return {**_mean_of(parts), "gradient_norm/generator": gradient_norm}

    def _judge(
        self, x: Tensor, y: Tensor, x_fake: Tensor, y_fake: Tensor
    ) -> tuple[DiscriminatorOutput, DiscriminatorOutput]:
        """Judge real and fake images, in one pass where the discriminator allows it."""
        if self.discriminator.joint_pass:
            both: DiscriminatorOutput = self.discriminator(torch.cat([x, x_fake]), torch.cat([y, y_fake]))
            return both.split(len(x))
        return self.discriminator(x, y), self.discriminator(x_fake, y_fake)

    def _latents(self, n: int) -> tuple[Tensor, Tensor]:
        """Draw z (n, Z) from N(0, I) and y (n,) uniformly, on the device."""
        z = torch.randn(n, self.generator.latent_dim, device=self.device)
        y = torch.randint(self.num_classes, (n,), device=self.device)
        return z, y

    def _set_learning_rates(self) -> None:
        factor = self.schedule.learning_rate_factor(self.step)
        for optimizer, initial in self.initial_rates:
            for group in optimizer.param_groups:
                group["lr"] = initial * factor

    def state(self) -> State:
        """All that a bit-exact continuation of the game needs, as tensors and builtins."""
        return {
            "step": self.step,
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": self.ema.generator.state_dict(),
            "regularizer": self.regularizer.state_dict(),
            "g_optimizer": {"kind": type(self.g_optimizer).__name__, **self.g_optimizer.state_dict()},
            "d_optimizer": {"kind": type(self.d_optimizer).__name__, **self.d_optimizer.state_dict()},
            "precision": self.precision.state_dict(),
            "stream": self.stream.state_dict(),
            "rng": rng_state(self.device),
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
        self.precision.load_state_dict(state["precision"])
        self.stream.load_state_dict(state["stream"])
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


def load_optimizer(optimizer: torch.optim.Optimizer, state: State, name: str) -> None:
    """Load the moments of every weight; the settings stay those of this run, so that new ones take effect.

    Raises:
        UserError: they are the moments of another kind of optimiser.
    """
    kind = type(optimizer).__name__
    if state["kind"] != kind:
        raise UserError(f"the checkpoint is of another optimizer: the {name} has {state['kind']} there and {kind} here")
    optimizer.load_state_dict({"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]})


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """While entered, a network's own weights get no gradients: the other player's step has no use for them."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)


def _mean_of(parts: list[Metrics]) -> Metrics:
    """The mean over micro-batches."""
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}


def _class_metrics(kind: str, output: DiscriminatorOutput, y: Tensor, class_loss: Tensor) -> Metrics:
    """The class term and the auxiliary head's accuracy, where there is a head."""
    if output.class_logits is None:
        return {}
    hits = output.class_logits.detach().argmax(dim=1) == y
    return {f"loss/class_{kind}": class_loss.detach(), f"accuracy/class_{kind}": hits.float().mean()}
