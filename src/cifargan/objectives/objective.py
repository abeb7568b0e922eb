"""The objective that the training step minimises: a loss, any number of penalties, and a class term."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cifargan.errors import UserError
from cifargan.models.interface import Discriminator, DiscriminatorOutput
from cifargan.objectives.base import Batch, Critic, Judgement, Kind, Loss, Penalty
from cifargan.objectives.classification import ClassificationLoss, NoClassification

Terms: TypeAlias = dict[str, Tensor]  # 0-dim float32 tensors on the device


class Objective(nn.Module):
    """The losses of both networks.

    Args:
        loss: the adversarial loss, with the penalties that it requires.
        penalties: further penalties of the discriminator, by the name that they are logged under.
        classification: the class term; None for none.

    Raises:
        UserError: a penalty is given that the loss has already.
    """

    def __init__(
        self,
        loss: Loss,
        penalties: Mapping[str, Penalty] | None = None,
        classification: ClassificationLoss | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss
        given, own = penalties or {}, loss.penalties()
        for name in given:
            if name in own:
                raise UserError(f"regularizer={name}: the chosen loss has this penalty already: set it under loss.")
        self.penalties = nn.ModuleDict({**own, **given})
        self.classification = None if isinstance(classification, NoClassification) else classification

    @property
    def pairs_with_real(self) -> bool:
        """Whether generated images have the real images' labels, and G's step takes a batch of real images."""
        return self.loss.pairs_with_real

    def health_names(self) -> list[str]:
        """The names of the figures of `Loss.health`."""
        return list(self.loss.health(torch.zeros(1), torch.zeros(1)))

    def differentiating_twice(self) -> list[str]:
        """The names of the terms that contain a gradient, which torch.compile cannot compile."""
        return [name for name, penalty in self._named() if penalty.differentiates_twice]

    def due(self, step: int) -> frozenset[str]:
        """The penalties that iteration `step` (counted from 0) takes: the kind of that iteration."""
        return frozenset(name for name, penalty in self._named() if step % penalty.interval == 0)

    def require_fits(self, discriminator: Discriminator) -> None:
        """Check that a discriminator allows the penalties.

        Raises:
            UserError: a penalty takes the gradient at each image, and batch norm mixes the images.
        """
        twice = self.differentiating_twice()
        if twice and any(isinstance(module, _BatchNorm) for module in discriminator.modules()):
            raise UserError(
                f"{twice[0]} penalises the gradient at each image, and batch norm in the discriminator mixes the images "
                "of a batch: set model.discriminator.batch_norm=false, or choose another loss or regularizer"
            )

    def discriminator(
        self, critic: Critic, real: Batch, fake: Batch, step: Tensor, due: frozenset[str]
    ) -> tuple[Terms, Terms]:
        """The discriminator's terms on one micro-batch.

        Args:
            critic: judges images.
            real: real images before augmentation.
            fake: generated images before augmentation, without gradients.
            step: 0-dim int64, the number of generator updates done.
            due: the penalties to take, of `due`.

        Returns:
            The terms to minimise the sum of, and further figures to log. Their names do not depend on `due`.
        """
        chosen = [(name, penalty) for name, penalty in self._named() if name in due]
        kinds: list[Kind] = sorted({kind for _, penalty in chosen for kind in penalty.gradients_at})
        batches: dict[Kind, Batch] = {"real": real, "fake": fake}
        for kind in kinds:
            batches[kind] = batches[kind]._replace(x=batches[kind].x.detach().requires_grad_())
        views = [penalty.views() for _, penalty in chosen]
        real_output, fake_output, *seen = critic(
            batches["real"], batches["fake"], views=[view for own in views for view in own]
        )
        outputs: dict[Kind, DiscriminatorOutput] = {"real": real_output, "fake": fake_output}
        gradients: dict[Kind, Tensor] = {}
        if kinds:
            found = critic.gradients([outputs[kind].logits for kind in kinds], [batches[kind].x for kind in kinds])
            gradients = dict(zip(kinds, found, strict=True))
        judgement = Judgement(
            critic=critic,
            real_batch=batches["real"],
            fake_batch=batches["fake"],
            real=real_output,
            fake=fake_output,
            gradient_at=gradients,
            step=step,
        )
        adversarial = self.loss.discriminator(real_output.logits, fake_output.logits)
        terms = {f"loss/{name}": term for name, term in adversarial.items()}
        taken = {}
        for (name, penalty), own in zip(chosen, views, strict=True):
            judged, seen = seen[: len(own)], seen[len(own) :]
            taken[name] = penalty.interval * penalty(replace(judgement, views=judged))
        # One that is not due counts as 0, so that its logged mean is that of the term as it is minimised.
        nothing = torch.zeros((), device=real.y.device)
        terms |= {f"loss/{name}": taken.get(name, nothing) for name, _ in self._named()}
        if self.classification is not None:
            terms["loss/class_real"] = self.classification.discriminator(real_output, real.y)
        real_logits, fake_logits = real_output.logits.detach(), fake_output.logits.detach()
        critic.augment.observe(real_logits)
        return terms, {
            "loss/discriminator": torch.stack([term.detach() for term in adversarial.values()]).sum(),
            "logit/real": real_logits.mean(),
            "logit/fake": fake_logits.mean(),
            **self.loss.health(real_logits, fake_logits),
            **_class_accuracy("real", real_output, real.y),
        }

    def generator(self, critic: Critic, fake: Batch, real: Batch | None) -> tuple[Terms, Terms]:
        """The generator's terms on one micro-batch.

        Args:
            critic: judges images.
            fake: generated images before augmentation, with gradients to the generator.
            real: real images of the same labels; only if `pairs_with_real`.

        Returns:
            The terms to minimise the sum of, and further figures to log.
        """
        real_logits = None
        if real is not None:
            with torch.no_grad():
                (real_output,) = critic(real)
            real_logits = real_output.logits
        (output,) = critic(fake)
        terms = {"loss/generator": self.loss.generator(output.logits, real_logits)}
        if self.classification is not None:
            terms["loss/class_fake"] = self.classification.generator(output, fake.y)
        return terms, _class_accuracy("fake", output, fake.y)

    def _named(self) -> list[tuple[str, Penalty]]:
        return [(name, penalty) for name, penalty in self.penalties.items() if isinstance(penalty, Penalty)]


def _class_accuracy(kind: str, output: DiscriminatorOutput, y: Tensor) -> Terms:
    """How often the head's class logits are right, if it gives any."""
    if output.class_logits is None:
        return {}
    hits = output.class_logits.detach().argmax(dim=1) == y
    return {f"accuracy/class_{kind}": hits.float().mean()}
