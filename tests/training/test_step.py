"""One iteration: what each step computes, which weights change, how often, and that nothing waits for the device."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from cifargan.errors import UserError
from cifargan.models.biggan import BigGANDiscriminator, BigGANGenerator
from cifargan.models.dcgan import DCGANDiscriminator
from cifargan.models.dense import DenseDiscriminator, DenseGenerator
from cifargan.models.heads import AuxiliaryHead, EmbeddingHead, ProjectionHead
from cifargan.models.spectral import SpectralNorm, trained_weight
from cifargan.objectives.augment import DiffAugment
from cifargan.objectives.base import Augment, Judgement, Penalty
from cifargan.objectives.classification import D2DCE, CrossEntropy
from cifargan.objectives.losses import BCELoss, HingeLoss, RelativisticLoss, WassersteinGPLoss, WassersteinLoss
from cifargan.objectives.penalties import R1, LeCam
from cifargan.training.monitor import RunningMeans
from cifargan.training.optimizers import adam, rmsprop
from cifargan.training.precision import PrecisionName
from cifargan.training.step import GANStep, frozen

GANMaker = Callable[..., GANStep]

NORMALISED_D = partial(DenseDiscriminator, channels=[4, 4], dropout=0.0, head=ProjectionHead, spectral_norm=True)
NORMALISED_G = partial(DenseGenerator, latent_dim=4, stem_channels=4, channels=4, label_map_size=4, spectral_norm=True)
BATCH_NORM_D = partial(DCGANDiscriminator, base_channels=4, head=ProjectionHead, spectral_norm=True)
SMALL_BIGGAN = partial(BigGANGenerator, latent_dim=9, channels=8, attention=[8], class_embedding_dim=4)
SMALL_BIGGAN_D = partial(BigGANDiscriminator, channels=8, attention=[8], head=AuxiliaryHead)
DESCENT = partial(torch.optim.SGD)  # its update is the gradient itself


def weights(network: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in network.parameters()]


def moved(before: list[Tensor], network: nn.Module) -> list[Tensor]:
    return [new - old for old, new in zip(before, weights(network), strict=True)]


def steps_of(gan: GANStep) -> list[tuple[nn.Module, Callable[[], dict[str, Tensor]]]]:
    """Each network with the step that trains it."""
    return [
        (gan.discriminator, partial(gan.discriminator_step, gan.objective.due(0))),
        (gan.generator, gan.generator_step),
    ]


def stays(before: list[Tensor], network: nn.Module) -> bool:
    return all(torch.equal(old, new) for old, new in zip(before, weights(network), strict=True))


# What an iteration computes


def test_first_losses_are_those_of_the_formulas(new_gan: GANMaker) -> None:
    gan = new_gan()
    torch.manual_seed(7)
    x, y = new_gan().stream.next()
    torch.manual_seed(7)
    z, y_fake = torch.randn(8, 4), torch.randint(4, (8,))
    real = gan.discriminator(x, y).logits
    fake = gan.discriminator(gan.generator(z, y_fake), y_fake).logits
    loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    gradients = torch.autograd.grad(loss, list(gan.discriminator.parameters()))
    torch.manual_seed(7)
    gan.prepare()
    metrics = gan.discriminator_step(gan.objective.due(0))
    expected = {
        "loss/real": F.relu(1 - real).mean().detach(),
        "loss/fake": F.relu(1 + fake).mean().detach(),
        "loss/discriminator": loss.detach(),
        "logit/real": real.detach().mean(),
        "logit/fake": fake.detach().mean(),
        "accuracy/real": (real > 0).float().mean(),
        "accuracy/fake": (fake < 0).float().mean(),
        "gradient_norm/discriminator": torch.cat([gradient.flatten() for gradient in gradients]).norm(),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value, msg=name)


class Pull(Penalty):
    """A penalty with a gradient that is easy to know."""

    def forward(self, judgement: Judgement) -> Tensor:
        return 2.0 * judgement.real.logits.mean() - 0.5 * judgement.fake.logits.mean()


def test_both_networks_descend_the_sum_of_all_their_terms(new_gan: GANMaker) -> None:
    terms = CrossEntropy(weight=0.5, fake_weight=0.25, label_smoothing=0.0)
    gan = new_gan(
        discriminator=partial(DenseDiscriminator, channels=[4, 4], dropout=0.0, head=AuxiliaryHead),
        penalties={"pull": Pull()},
        classification=terms,
        optimizer=DESCENT,
        d_lr=1.0,
        g_lr=1.0,
    )
    torch.manual_seed(7)
    x, y = new_gan().stream.next()
    for network, step in steps_of(gan):
        torch.manual_seed(7)
        z, y_fake = torch.randn(8, 4), torch.randint(4, (8,))
        real, fake = gan.discriminator(x, y), gan.discriminator(gan.generator(z, y_fake), y_fake)
        if network is gan.discriminator:
            adversarial = F.relu(1 - real.logits).mean() + F.relu(1 + fake.logits).mean()
            further = 2.0 * real.logits.mean() - 0.5 * fake.logits.mean() + 0.5 * F.cross_entropy(real.class_logits, y)
        else:
            adversarial, further = -fake.logits.mean(), 0.25 * F.cross_entropy(fake.class_logits, y_fake)
        gradients = torch.autograd.grad(adversarial + further, list(network.parameters()))
        before = weights(network)
        gan.prepare()
        torch.manual_seed(7)
        metrics = step()
        torch.testing.assert_close(moved(before, network), [-g for g in gradients], rtol=1e-4, atol=1e-5)
        name = "discriminator" if network is gan.discriminator else "generator"
        torch.testing.assert_close(metrics[f"loss/{name}"], adversarial.detach())
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        torch.testing.assert_close(metrics[f"gradient_norm/{name}"], norm)


def test_class_terms_train_each_network_on_its_own_images(new_gan: GANMaker) -> None:
    gan = new_gan(discriminator=SMALL_BIGGAN_D, classification=CrossEntropy(), generator=SMALL_BIGGAN)
    metrics = gan.iterate()
    assert {"loss/class_real", "loss/class_fake", "accuracy/class_real", "accuracy/class_fake"} <= metrics.keys()
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())
    assert metrics["loss/class_real"] > 0
    # Through the classifier alone, with nothing to win from the realness.
    lonely = new_gan(
        discriminator=SMALL_BIGGAN_D, generator=SMALL_BIGGAN, classification=CrossEntropy(weight=0.0), optimizer=DESCENT
    )
    before = weights(lonely.discriminator.get_submodule("head.classifier"))
    lonely.prepare()
    lonely.discriminator_step(lonely.objective.due(0))
    assert stays(before, lonely.discriminator.get_submodule("head.classifier"))


def test_the_augmentation_is_between_the_images_and_the_discriminator_in_all_three_places(new_gan: GANMaker) -> None:
    seen: list[Tensor] = []

    class Blank(Augment):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return torch.zeros_like(x) + 0.0 * x

    gan = new_gan(augment=Blank())
    judged: list[Tensor] = []
    gan.discriminator.register_forward_pre_hook(lambda module, args: judged.append(args[0].detach()))
    gan.iterate()
    assert [len(x) for x in seen] == [8, 8, 8]
    assert [x.requires_grad for x in seen] == [False, False, True]
    assert all(not x.any() for x in judged)


def test_clipping_comes_after_every_update_of_the_critic(new_gan: GANMaker) -> None:
    gan = new_gan(loss=WassersteinLoss(clip=0.01), optimizer=rmsprop, d_lr=0.5, g_lr=0.5, d_steps=2)
    gan.iterate()
    assert max(float(p.detach().abs().max()) for p in gan.discriminator.parameters()) == pytest.approx(0.01)
    assert max(float(p.detach().abs().max()) for p in gan.generator.parameters()) > 0.1


# Which weights change


def test_a_loss_of_pairs_takes_a_real_batch_in_each_step_and_gives_the_fakes_its_labels(new_gan: GANMaker) -> None:
    gan = new_gan(loss=RelativisticLoss(), d_steps=2, discriminator=NORMALISED_D)
    labels: list[Tensor] = []
    gan.generator.register_forward_hook(lambda module, args, output: labels.append(args[1]))
    taken: list[Tensor] = []
    take = gan.stream.take

    def spied() -> tuple[Tensor, Tensor]:
        x, y = take()
        taken.append(y)
        return x, y

    gan.stream.take = spied  # type: ignore[method-assign]
    gan.iterate()
    assert gan.stream.images_seen == 3 * 8
    assert [y.tolist() for y in labels] == [y.tolist() for y in taken]


@pytest.mark.parametrize("d_steps", [1, 3])
def test_an_iteration_is_d_steps_updates_of_the_discriminator_and_one_of_the_generator(
    new_gan: GANMaker, d_steps: int
) -> None:
    gan = new_gan(d_steps=d_steps)
    gan.iterate()
    gan.iterate()

    def updates(optimizer: torch.optim.Optimizer) -> list[int]:
        return sorted({int(state["step"]) for state in optimizer.state.values()})

    assert updates(gan.d_optimizer) == [2 * d_steps]
    assert updates(gan.g_optimizer) == [2]
    assert gan.step == int(gan.step_on_device) == 2
    assert gan.stream.images_seen == 2 * d_steps * 8


def test_each_step_leaves_the_other_network_and_its_gradients_alone(new_gan: GANMaker) -> None:
    gan = new_gan(generator=NORMALISED_G, discriminator=NORMALISED_D)
    gan.prepare()
    others = {gan.discriminator: gan.generator, gan.generator: gan.discriminator}
    for network, step in steps_of(gan):
        other = others[network]
        before, other_before = weights(network), weights(other)
        vectors = [buffer.clone() for buffer in other.buffers()]
        kept = None if other is gan.generator else 0.25  # D's gradients from an earlier micro-batch must survive
        for parameter in other.parameters():
            parameter.grad = None if kept is None else torch.full_like(parameter, kept)
        step()
        assert stays(other_before, other)
        assert all(torch.equal(a, b) for a, b in zip(vectors, other.buffers(), strict=True))
        assert all(parameter.requires_grad for parameter in other.parameters())
        gradients = [parameter.grad for parameter in other.parameters()]
        assert all(g is None if kept is None else g is not None and bool((g == kept).all()) for g in gradients)
        assert not stays(before, network)


def test_freezing_ends_with_an_error_too() -> None:
    network = nn.Linear(2, 2)

    def fail() -> None:
        assert not any(p.requires_grad for p in network.parameters())
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), frozen(network):
        fail()
    assert all(p.requires_grad for p in network.parameters())


# Passes and power iterations


def next_vectors(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Where one power iteration from here, on the present weights, would take u and v."""
    result = []
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            norm = module.get_submodule("parametrizations.weight.0")
            assert isinstance(norm, SpectralNorm)
            weight = trained_weight(module).detach()
            matrix = weight.transpose(0, norm.output_dim).flatten(1)
            v = F.normalize(matrix.T @ norm.u, dim=0)
            result.append((F.normalize(matrix @ v, dim=0), v))
    return result


def vectors_of(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(m.u.clone(), m.v.clone()) for m in network.modules() if isinstance(m, SpectralNorm)]


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("discriminator", [NORMALISED_D, BATCH_NORM_D], ids=["one pass", "two passes"])
def test_one_power_iteration_an_update_however_many_passes_it_takes(
    new_gan: GANMaker, discriminator: Callable[..., nn.Module], accumulate: int
) -> None:
    gan = new_gan(
        generator=NORMALISED_G,
        discriminator=discriminator,
        accumulate=accumulate,
        optimizer=DESCENT,
        d_lr=0.1,
        g_lr=0.1,
    )
    for network, step in steps_of(gan):
        old = vectors_of(network)
        gan.prepare()
        step()
        new = vectors_of(network)
        assert len(new) > 2
        # Back to the old vectors, on the new weights.
        for module, (u, v) in zip((m for m in network.modules() if isinstance(m, SpectralNorm)), old, strict=True):
            module.u.copy_(u)
            module.v.copy_(v)
        for (u, v), (expected_u, expected_v) in zip(new, next_vectors(network), strict=True):
            torch.testing.assert_close(u, expected_u, rtol=0, atol=1e-6)
            torch.testing.assert_close(v, expected_v, rtol=0, atol=1e-6)
        assert any((u - old_u).norm() > 1e-3 for (u, _), (old_u, _) in zip(new, old, strict=True))


@pytest.mark.parametrize(
    ("discriminator", "batches"), [(NORMALISED_D, [16, 8]), (BATCH_NORM_D, [8, 8, 8])], ids=["joint", "batch norm"]
)
def test_batch_norm_never_sees_real_and_fake_together(
    new_gan: GANMaker, discriminator: Callable[..., nn.Module], batches: list[int]
) -> None:
    gan = new_gan(discriminator=discriminator)
    seen: list[int] = []
    gan.discriminator.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    gan.iterate()
    assert seen == batches


def test_one_pass_and_two_passes_are_the_same_update_without_batch_norm(
    new_gan: GANMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    joint, separate = (
        new_gan(discriminator=NORMALISED_D, penalties={"lecam": LeCam(start=0)}, optimizer=DESCENT, d_lr=1.0)
        for _ in range(2)
    )
    torch.manual_seed(3)
    joint.prepare()
    metrics = joint.discriminator_step(joint.objective.due(0))
    monkeypatch.setattr(DenseDiscriminator, "joint_pass", False)
    separate.prepare()
    torch.manual_seed(3)
    for name, value in separate.discriminator_step(joint.objective.due(0)).items():
        torch.testing.assert_close(value, metrics[name], msg=name)
    torch.testing.assert_close(weights(joint.discriminator), weights(separate.discriminator))


# Accumulation


class FixedStream:
    """Hands out the same images in the same order, in parts of any size."""

    def __init__(self, x: Tensor, y: Tensor, size: int) -> None:
        self.parts = [*zip(torch.split(x, size), torch.split(y, size), strict=True)]

    def advance(self, batches: int) -> None:
        pass

    def take(self) -> tuple[Tensor, Tensor]:
        self.parts = [*self.parts[1:], self.parts[0]]
        return self.parts[-1]


def fix_inputs(gan: GANStep, monkeypatch: pytest.MonkeyPatch, images: tuple[Tensor, Tensor]) -> None:
    z, y = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 4
    size = gan.schedule.micro_batch
    latents = FixedStream(z, y, size)
    monkeypatch.setattr(gan, "stream", FixedStream(*images, size))

    def taken(n: int, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, y = latents.take()
        return z, y if labels is None else labels

    monkeypatch.setattr(gan, "_latents", taken)


@pytest.mark.parametrize("accumulate", [2, 8])
@pytest.mark.parametrize(
    "objective",
    [
        {
            "loss": BCELoss(),
            "classification": CrossEntropy(),
            "discriminator": partial(NORMALISED_D, head=AuxiliaryHead),
        },
        {"loss": HingeLoss(), "penalties": {"r1": R1(gamma=0.1, interval=2)}},
        {"loss": RelativisticLoss(gamma=0.1)},
    ],
    ids=["class term", "r1", "rpgan"],
)
def test_micro_batches_give_the_update_of_the_whole_batch(
    new_gan: GANMaker, monkeypatch: pytest.MonkeyPatch, objective: dict[str, Any], accumulate: int
) -> None:
    settings: dict[str, Any] = {
        "generator": NORMALISED_G,
        "discriminator": NORMALISED_D,
        "optimizer": DESCENT,
        "d_lr": 1.0,
        "g_lr": 1.0,
        **objective,
    }
    whole, parts = new_gan(**settings), new_gan(**settings, accumulate=accumulate)
    images = whole.stream.next()
    fix_inputs(whole, monkeypatch, images)
    fix_inputs(parts, monkeypatch, images)
    start = weights(whole.discriminator), weights(whole.generator)
    expected, actual = whole.iterate(), parts.iterate()
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, msg=name, rtol=1e-4, atol=1e-6)
    for before, a, b in (
        (start[0], whole.discriminator, parts.discriminator),
        (start[1], whole.generator, parts.generator),
    ):
        steps = moved(before, a)
        torch.testing.assert_close(moved(before, b), steps, rtol=1e-3, atol=1e-6)
        assert sum(float(step.norm()) for step in steps) > 1e-2


# Waiting for the device


class NeverWait(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses what would make the host wait for a GPU: reading a value, and shapes that depend on values.

    Args:
        on_host: data pointers of tensors that lie on the host whatever the device: Adam's step counters.
    """

    WAITS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique", "_unique2")

    def __init__(self, on_host: set[int] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on_host = on_host or set()
        self.calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        reads = name.startswith(self.WAITS) and args[0].data_ptr() not in self.on_host
        masks = name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for index in (args[1] if isinstance(args[1], list | tuple) else ())
        )
        counts = func is torch.ops.aten.repeat_interleave.Tensor
        if reads or masks or counts:
            raise AssertionError(f"{func} waits for the device")
        self.calls += 1
        return func(*args, **(kwargs or {}))


WAITS: list[Callable[[Tensor], Any]] = [
    lambda x: x.sum().item(),
    lambda x: bool(x.sum() > 0),
    lambda x: x.nonzero(),
    lambda x: x[x > 0],
    lambda x: x.masked_select(x > 0),
    lambda x: torch.equal(x, x),
    lambda x: range(x.long().max()),
]


def test_the_guard_above_notices() -> None:
    for wait in WAITS:
        with pytest.raises(AssertionError, match="waits for the device"), NeverWait():
            wait(torch.ones(3))


def refuse(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a tensor was read back")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"generator": SMALL_BIGGAN, "discriminator": SMALL_BIGGAN_D, "classification": CrossEntropy()}, id="acgan"
        ),
        pytest.param(
            {
                "generator": SMALL_BIGGAN,
                "discriminator": partial(SMALL_BIGGAN_D, head=partial(EmbeddingHead, embedding_dim=8)),
                "classification": D2DCE(),
            },
            id="reacgan",
        ),
        pytest.param(
            {"discriminator": partial(BATCH_NORM_D, dropout=0.3, label_map=True), "loss": BCELoss()}, id="dcgan"
        ),
        pytest.param({"loss": WassersteinLoss(), "optimizer": rmsprop}, id="wasserstein"),
        pytest.param({"loss": WassersteinGPLoss(interval=2)}, id="wgan_gp"),
        pytest.param({"loss": RelativisticLoss()}, id="rpgan"),
    ],
)
def test_an_iteration_never_waits_for_the_device(
    new_gan: GANMaker, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], precision: PrecisionName
) -> None:
    for name in ("tolist", "numpy", "cpu"):  # would read a CPU tensor without any operator
        monkeypatch.setattr(Tensor, name, refuse)
    common = {"penalties": {"lecam": LeCam(start=2)}, "augment": DiffAugment(), "ema": {"decay": 0.9, "start": 1}}
    gan = new_gan(**{"optimizer": adam, **common, **settings}, precision=precision, d_steps=2)
    metrics = gan.iterate()  # makes the optimisers' state
    running = RunningMeans(list(metrics))
    counters = {
        state["step"].data_ptr()
        for optimizer in (gan.g_optimizer, gan.d_optimizer)
        for state in optimizer.state.values()
    }
    with NeverWait(on_host=counters) as guard:
        for _ in range(2):  # past the starts, and over the end of an epoch of 40 images
            running.update(gan.iterate(), gan.step_on_device)
    assert guard.calls > 500


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_iteration_never_waits_for_a_real_gpu(new_gan: GANMaker, precision: PrecisionName) -> None:
    gan = new_gan(
        generator=SMALL_BIGGAN,
        discriminator=SMALL_BIGGAN_D,
        classification=CrossEntropy(),
        optimizer=adam,
        penalties={"lecam": LeCam(start=2)},
        augment=DiffAugment(),
        precision=precision,
        device="cuda",
    )
    gan.iterate()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(6):
            gan.iterate()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# State


def test_a_checkpoint_of_other_parts_is_refused_by_what_differs(new_gan: GANMaker) -> None:
    gan = new_gan(optimizer=adam)
    gan.iterate()
    wider = partial(DenseDiscriminator, channels=[4, 8], head=ProjectionHead)
    for other, message in (
        ({"discriminator": wider}, r"another discriminator: body\.2\.weight is \(4, 4, 3, 3\) there and \(8,"),
        ({"generator": NORMALISED_G}, r"another generator: .* is absent there"),
        ({"penalties": {"lecam": LeCam()}}, r"another regularizer: penalties.lecam.real_anchor is absent there"),
        ({"optimizer": rmsprop}, "another optimizer"),
    ):
        with pytest.raises(UserError, match=message) as error:
            new_gan(**{"optimizer": adam, **other}).load_state(gan.state())
        assert "\n" not in str(error.value)


def test_new_settings_win_over_those_of_the_checkpoint(new_gan: GANMaker) -> None:
    gan = new_gan(optimizer=partial(adam, betas=(0.5, 0.9)), d_lr=1e-3)
    gan.iterate()
    resumed = new_gan(optimizer=partial(adam, betas=(0.0, 0.99)), d_lr=5e-3)
    resumed.load_state(gan.state())
    resumed.iterate()
    (group,) = resumed.d_optimizer.param_groups
    assert (group["betas"], group["lr"]) == ((0.0, 0.99), 5e-3)
    assert {int(state["step"]) for state in resumed.d_optimizer.state.values()} == {2}
