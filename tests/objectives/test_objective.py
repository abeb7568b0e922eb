"""The objective as a whole: what is judged together, what is drawn in which order, which terms come out."""

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from cifargan.errors import UserError
from cifargan.models.dcgan import DCGANDiscriminator
from cifargan.models.dense import DenseDiscriminator
from cifargan.models.heads import AuxiliaryHead, LinearHead, ProjectionHead
from cifargan.models.interface import AcrossBatch, Discriminator, DiscriminatorOutput
from cifargan.objectives.base import Augment, Batch, Critic, Judgement, Penalty, View
from cifargan.objectives.classification import CrossEntropy
from cifargan.objectives.losses import HingeLoss, RelativisticLoss, WassersteinGPLoss
from cifargan.objectives.objective import Objective
from cifargan.objectives.penalties import R1, Consistency, LeCam

ZERO = torch.tensor(0)
PLAIN_D = partial(DenseDiscriminator, num_classes=4, image_size=16, channels=[4, 4], dropout=0.0)
BATCH_NORM_D = partial(DCGANDiscriminator, num_classes=4, image_size=16, base_channels=4)


class MinibatchStddev(AcrossBatch):
    """Adds the mean deviation over the batch as one more feature."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.std(dim=0).mean().expand(len(x), 1, *x.shape[2:])], dim=1)


def with_stddev(discriminator: DenseDiscriminator) -> DenseDiscriminator:
    discriminator.body.append(MinibatchStddev())
    discriminator.body.append(nn.Conv2d(5, 4, 1))
    return discriminator


class Numbering(Augment):
    """Adds 1 to the first batch that it sees, 2 to the second, and so on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.observed: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return x + float(len(self.seen))

    def observe(self, real_logits: Tensor) -> None:
        self.observed.append(real_logits)


class SecondLook(Penalty):
    """Asks for two views of the real images."""

    def views(self) -> Sequence[View]:
        return (lambda x: x + 100.0, lambda x: x + 200.0)

    def forward(self, judgement: Judgement) -> Tensor:
        first, second = judgement.views
        return first.logits.mean() + 2.0 * second.logits.mean()


class Mean(Discriminator):
    """Realness is the mean of the image; keeps the batches that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[list[float]] = []

    def forward(self, x: Tensor, y: Tensor) -> DiscriminatorOutput:
        means = x.mean(dim=(1, 2, 3))
        self.given.append(means.tolist())
        return DiscriminatorOutput(means)


def batch(n: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.rand(n, 3, 16, 16, generator=generator) * 2 - 1, torch.arange(n) % 4)


def test_each_batch_is_augmented_once_real_before_fake_and_views_are_made_of_the_augmented_reals() -> None:
    real, fake = (
        Batch(torch.zeros(2, 3, 4, 4), torch.zeros(2).long()),
        Batch(torch.zeros(3, 3, 4, 4), torch.zeros(3).long()),
    )
    augment, critic = Numbering(), Mean()
    objective = Objective(HingeLoss(), {"look": SecondLook(), "lecam": LeCam()})
    terms, figures = objective.discriminator(Critic(critic, augment), real, fake, ZERO, objective.due(0))
    assert augment.seen == [2, 3]
    assert critic.given == [[1.0, 1.0, 101.0, 101.0, 201.0, 201.0, 2.0, 2.0, 2.0]]  # one pass
    assert terms["loss/look"].item() == 101.0 + 2 * 201.0
    assert figures["logit/real"].item() == 1.0
    assert figures["logit/fake"].item() == 2.0
    assert [logits.tolist() for logits in augment.observed] == [[1.0, 1.0]]


def test_terms_have_their_own_names_and_add_up_in_the_figures() -> None:
    objective = Objective(HingeLoss(), {"lecam": LeCam(start=0), "cr": Consistency()}, CrossEntropy())
    critic = Critic(PLAIN_D(head=AuxiliaryHead), Augment())
    terms, figures = objective.discriminator(critic, batch(4), batch(4, 1), ZERO, objective.due(0))
    assert list(terms) == ["loss/real", "loss/fake", "loss/lecam", "loss/cr", "loss/class_real"]
    assert figures["loss/discriminator"].item() == pytest.approx((terms["loss/real"] + terms["loss/fake"]).item())
    assert {"accuracy/real", "accuracy/fake", "accuracy/class_real"} <= figures.keys()
    terms, figures = objective.generator(critic, batch(4, 1), None)
    assert list(terms) == ["loss/generator", "loss/class_fake"]
    assert list(figures) == ["accuracy/class_fake"]


DISCRIMINATORS = {
    "plain": (PLAIN_D(head=ProjectionHead, spectral_norm=True), True),
    "batch norm": (BATCH_NORM_D(head=LinearHead), False),
    "minibatch stddev": (with_stddev(PLAIN_D(head=LinearHead)), False),
}


@pytest.mark.parametrize(("discriminator", "joint"), DISCRIMINATORS.values(), ids=DISCRIMINATORS)
def test_the_real_logits_do_not_depend_on_the_fakes(discriminator: Discriminator, joint: bool) -> None:
    assert discriminator.joint_pass is joint
    critic = Critic(discriminator.train(), Augment())
    real, fake, other = batch(6), batch(6, 1), Batch(batch(6, 1).x.flip(0), batch(6, 1).y.flip(0))
    view: View = lambda x: x.flip(-1)  # noqa: E731
    first, second, alone = critic(real, fake, views=[view]), critic(real, other), critic(real)
    for seen in (second[0], alone[0]):
        torch.testing.assert_close(seen.logits, first[0].logits, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(second[1].logits, first[1].logits.flip(0), rtol=1e-5, atol=1e-6)
    (mirrored,) = critic(Batch(view(real.x), real.y))
    torch.testing.assert_close(first[2].logits, mirrored.logits, rtol=1e-5, atol=1e-6)


def test_a_pairing_loss_compares_fresh_reals_of_the_same_labels() -> None:
    objective, critic = Objective(RelativisticLoss(gamma=0.0)), Mean()
    assert objective.pairs_with_real
    real, fake = batch(4), batch(4, 1)
    fake.x.requires_grad_()
    terms, _ = objective.generator(Critic(critic, Augment()), fake, real)
    difference = fake.x.mean(dim=(1, 2, 3)) - real.x.mean(dim=(1, 2, 3))
    torch.testing.assert_close(terms["loss/generator"], nn.functional.softplus(-difference).mean())
    assert len(critic.given) == 2  # never in one pass: the reals need no gradient


def test_a_penalty_by_gradient_refuses_batch_norm_in_one_line() -> None:
    for objective in (Objective(WassersteinGPLoss()), Objective(HingeLoss(), {"r1": R1()})):
        objective.require_fits(PLAIN_D(head=LinearHead))
        with pytest.raises(UserError, match=r"batch norm.*batch_norm=false") as error:
            objective.require_fits(BATCH_NORM_D(head=LinearHead))
        assert "\n" not in str(error.value)
    Objective(HingeLoss(), {"lecam": LeCam()}).require_fits(BATCH_NORM_D(head=LinearHead))


def test_the_state_of_every_penalty_is_kept_and_none_is_chosen_twice() -> None:
    objective = Objective(HingeLoss(), {"lecam": LeCam(), "cr": Consistency()})
    assert set(objective.state_dict()) == {"penalties.lecam.real_anchor", "penalties.lecam.fake_anchor"}
    with pytest.raises(UserError, match=r"regularizer=r1.*already"):
        Objective(RelativisticLoss(), {"r1": R1()})
