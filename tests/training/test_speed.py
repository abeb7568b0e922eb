"""Which speed are on, who decides, and that none of them changes what is computed."""

import shutil
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifargan.errors import UserError
from cifargan.models.resampling import PooledConv2d
from cifargan.training.speed import PLAIN, SpeedOptions, SpeedSettings, remembered
from cifargan.training.step import GANStep

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ON_CPU = SpeedOptions(
    channels_last=True, fused=True, batched_spectral_norm=True, fold_up=True, fold_down=True
)  # all that a CPU can have, but compilation


def decide(device: torch.device = CPU, *, pays: tuple[bool, bool] = (True, False), **settings: Any) -> SpeedOptions:
    facts: dict[str, Any] = {"deterministic": False, "scaled": False, "fusible": True, "recordable": True}
    facts |= {key: settings.pop(key) for key in (*facts, "before") if key in settings}
    return SpeedSettings(**settings).resolve(device, **facts, faster_forms=lambda **_: pays)


def test_plain_means_nothing_and_auto_what_suits_the_device() -> None:
    assert decide(speed="plain") == decide(CUDA, speed="plain") == PLAIN == SpeedOptions()
    assert decide() == SpeedOptions(channels_last=True, fused=True, batched_spectral_norm=True, fold_up=True)
    assert decide(CUDA) == SpeedOptions(
        channels_last=True, tf32=True, fused=True, batched_spectral_norm=True, fold_up=True, graph=True
    )
    assert decide(torch.device("mps")) == SpeedOptions(batched_spectral_norm=True, fold_up=True)


def test_a_loss_scale_that_the_host_reads_rules_out_a_graph() -> None:
    assert decide(CUDA, scaled=True).graph
    assert decide(CUDA, scaled=False, fusible=False).graph
    assert not decide(CUDA, scaled=True, fusible=False).graph
    assert not decide(CUDA, scaled=True, fused=False).graph
    assert not decide(CUDA, recordable=False).graph
    with pytest.raises(UserError, match=r"trainer\.graph=true: .*recorded"):
        decide(CUDA, recordable=False, graph=True)
    assert decide(CUDA, scaled=True, fusible=False, graph=True).graph  # who asks for it may see it fail


@pytest.mark.parametrize("name", ["channels_last", "tf32", "fused", "batched_spectral_norm", "graph"])
def test_every_switch_can_be_turned_by_itself(name: str) -> None:
    for speed in ("auto", "plain"):
        for value in (True, False):
            default = asdict(decide(CUDA, speed=speed))
            chosen: dict[str, Any] = {name: value}
            assert asdict(decide(CUDA, speed=speed, **chosen)) == {**default, **chosen}


def test_folding_is_timed_unless_it_is_set_or_forbidden() -> None:
    def forms(**settings: Any) -> tuple[bool, bool]:
        decided = decide(**settings)
        return decided.fold_up, decided.fold_down

    assert forms() == (True, False)
    assert forms(fold=True) == (True, True)
    assert forms(fold=False) == (False, False)
    assert forms(deterministic=True) == (False, False)
    assert forms(deterministic=True, fold=True) == (True, True)


def test_the_timing_knows_the_layout() -> None:
    asked: list[bool] = []

    def faster_forms(*, channels_last: bool) -> tuple[bool, bool]:
        asked.append(channels_last)
        return False, False

    for settings in (SpeedSettings(), SpeedSettings(channels_last=False)):
        settings.resolve(CPU, deterministic=False, scaled=False, fusible=True, faster_forms=faster_forms)
    assert asked == [True, False]


def test_compilation_is_off_by_default() -> None:
    assert [decide(compile=mode).compile for mode in ("auto", "off", "default", "max-autotune")] == [
        "off",
        "off",
        "default",
        "max-autotune",
    ]


def test_a_resumed_run_keeps_its_options_except_those_that_are_set_again() -> None:
    before = SpeedOptions(channels_last=False, fused=True, fold_down=True)
    assert decide(before=before, pays=(True, True)) == before
    assert decide(before=before, fused=False, fold=False) == SpeedOptions()
    assert decide(before=before, speed="plain") == PLAIN


def test_only_true_and_false_are_read_from_a_checkpoint() -> None:
    assert remembered(asdict(ON_CPU)) == ON_CPU
    assert remembered({"fused": "yes", "graph": 1, "compile": "max-autotune", "other": True}) == PLAIN
    assert remembered({}) == PLAIN


def test_names_for_the_log() -> None:
    assert PLAIN.names() == []
    assert SpeedOptions(fused=True, fold_up=True, compile="default").names() == ["fused", "fold_up", "compile=default"]


def test_networks_are_prepared() -> None:
    network = nn.Sequential(PooledConv2d(3, 4))
    SpeedOptions(channels_last=True, fold_down=True).prepare(network)
    (layer,) = network
    assert isinstance(layer, PooledConv2d)
    assert layer.folded
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)


# An iteration computes the same with and without them

BIGGAN = [
    "experiment=biggan_lecam_diffaug",
    "model.generator.channels=8",
    "model.generator.latent_dim=9",
    "model.generator.attention=[8]",
    "model.discriminator.channels=8",
    "model.discriminator.attention=[8]",
    "trainer.d_steps=2",
    "trainer.accumulate=2",
    "trainer.ema.start=1",
    "regularizer=[lecam,cr]",
    "regularizer.lecam.start=1",
    "optimizer.generator.eps=1e-2",  # the sign of a gradient of 1e-9 must not decide a step
    "optimizer.discriminator.eps=1e-2",
]
OTHERS = {
    "cdcgan": ["experiment=cdcgan_cbn", "model.generator.base_channels=8", "model.discriminator.base_channels=8"],
    "csagan": ["experiment=csagan_wgan", "model.generator.channels=8", "model.discriminator.channels=[8,8]"],
}


@pytest.mark.parametrize(
    "setting",
    ["channels_last=true", "fused=true", "batched_spectral_norm=true", "fold=true", "speed=auto"],
)
@pytest.mark.parametrize("recipe", ["biggan", *OTHERS])
def test_a_switch_changes_no_figure_and_no_weight(gan_of: Callable[..., GANStep], recipe: str, setting: str) -> None:
    overrides = [*(BIGGAN if recipe == "biggan" else OTHERS[recipe]), "trainer.speed=plain"]
    gans = [gan_of(*overrides), gan_of(*overrides, f"trainer.{setting}")]
    assert gans[1].speed != PLAIN
    torch.manual_seed(1)
    expected = [gans[0].iterate() for _ in range(3)]
    torch.manual_seed(1)
    actual = [gans[1].iterate() for _ in range(3)]
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(b, a, rtol=2e-3, atol=2e-4)
    for network in ("generator", "discriminator"):
        a, b = (dict(getattr(gan, network).state_dict()) for gan in gans)
        torch.testing.assert_close(b, a, rtol=2e-3, atol=2e-4)


def test_all_at_once_are_bit_equal_from_run_to_run(
    gan_of: Callable[..., GANStep], differences: Callable[[Any, Any], list[str]]
) -> None:
    overrides = [*BIGGAN, "deterministic=true", "trainer.fold=true"]
    gans: list[GANStep] = []
    for _ in range(2):
        gan = gan_of(*overrides)
        assert gan.speed == ON_CPU
        for _ in range(3):
            gan.iterate()
        gans.append(gan)
    assert differences(gans[0].state(), gans[1].state()) == []


@pytest.mark.slow
def test_the_loop_that_is_read_is_the_loop_that_is_compiled(
    gan_of: Callable[..., GANStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    real_compile = torch.compile
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    # The tracing is the real one; code is not generated, which would take minutes.
    monkeypatch.setattr(torch, "compile", lambda function, **_: real_compile(function, backend=count, fullgraph=True))
    overrides = [*BIGGAN, "trainer.speed=plain", "trainer.batched_spectral_norm=true"]
    plain = gan_of(*overrides)
    fast = gan_of(*overrides, "trainer.compile=default")
    for _ in range(3):
        torch.manual_seed(1)
        expected = plain.iterate()
        torch.manual_seed(1)
        torch.testing.assert_close(fast.iterate(), expected, rtol=1e-3, atol=1e-4)
    assert len(graphs) == 2  # one for each network's loss, whole, and never traced again


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler")
def test_compiled_code_computes_the_same_iteration(
    new_gan: Callable[..., GANStep], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing may be added to the first term: a sum that is its own first summand once lost its gradient.
    monkeypatch.setenv("TORCHINDUCTOR_FX_GRAPH_CACHE", "0")
    plain = new_gan()
    fast = new_gan(speed=SpeedOptions(compile="default"))
    for _ in range(2):
        torch.manual_seed(1)
        expected = plain.iterate()
        torch.manual_seed(1)
        torch.testing.assert_close(fast.iterate(), expected, rtol=1e-3, atol=1e-4)
