"""The timing that chooses between two forms of a convolution: what it leaves alone and what it caches."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cifargan.models.biggan import BigGANDiscriminator, BigGANGenerator
from cifargan.models.dense import DenseGenerator
from cifargan.models.heads import LinearHead
from cifargan.training import conv_autotune
from cifargan.training.conv_autotune import faster_forms
from cifargan.training.precision import Precision

CPU = torch.device("cpu")


@pytest.fixture
def networks() -> tuple[BigGANGenerator, BigGANDiscriminator]:
    torch.manual_seed(0)
    g = BigGANGenerator(num_classes=3, image_size=16, channels=8, latent_dim=6, attention=[], class_embedding_dim=4)
    return g, BigGANDiscriminator(num_classes=3, image_size=16, channels=8, attention=[], head=LinearHead)


@pytest.fixture
def ask(networks: tuple[BigGANGenerator, BigGANDiscriminator], tmp_path: Path) -> Callable[..., tuple[bool, bool]]:
    def ask(**changed: Any) -> tuple[bool, bool]:
        settings = {"batch_size": 4, "channels_last": True, "precision": Precision("fp32", CPU), "device": CPU}
        return faster_forms(*networks, **{**settings, "file": tmp_path / "cache" / "forms.json", **changed})

    return ask


def test_networks_and_random_numbers_stay_as_they_are(
    ask: Callable[..., tuple[bool, bool]], networks: tuple[BigGANGenerator, BigGANDiscriminator]
) -> None:
    before = [{key: value.clone() for key, value in network.state_dict().items()} for network in networks]
    random = torch.get_rng_state()
    ask()
    assert torch.equal(torch.get_rng_state(), random)
    for network, state in zip(networks, before, strict=True):
        torch.testing.assert_close(dict(network.state_dict()), state, rtol=0, atol=0)
        assert network.training
        assert all(parameter.grad is None for parameter in network.parameters())


def test_each_network_is_timed_once_and_the_answer_is_cached(
    ask: Callable[..., tuple[bool, bool]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timed: list[tuple[int, ...]] = []
    ratios = iter([1.5, 0.8, 0.5, 2.0])

    def ratio(network: Any, x: Tensor, y: Tensor, **settings: Any) -> float:
        timed.append(tuple(x.shape))
        return next(ratios)

    monkeypatch.setattr(conv_autotune, "_speed_up", ratio)
    assert ask() == (True, False)
    assert timed == [(4, 6), (4, 3, 16, 16)]
    assert ask() == (True, False)
    assert len(timed) == 2
    assert ask(channels_last=False) == (False, True)  # the layout counts
    assert len(timed) == 4
    stored = json.loads((tmp_path / "cache" / "forms.json").read_text())
    assert sorted(stored.values()) == [0.5, 0.8, 1.5, 2.0]


def test_a_real_timing_is_a_plausible_ratio(ask: Callable[..., tuple[bool, bool]], tmp_path: Path) -> None:
    ask()
    ratios = json.loads((tmp_path / "cache" / "forms.json").read_text()).values()
    assert len(ratios) == 2
    assert all(ratio > 0 for ratio in ratios)


def test_networks_without_such_layers_need_no_timing(tmp_path: Path) -> None:
    g = DenseGenerator(num_classes=0, image_size=16, latent_dim=4, stem_channels=4, channels=4)
    d = BigGANDiscriminator(num_classes=0, image_size=8, channels=8, attention=[], head=LinearHead)
    file = tmp_path / "forms.json"
    fp32 = Precision("fp32", CPU)
    forms = faster_forms(g, d, batch_size=2, channels_last=True, precision=fp32, device=CPU, file=file)
    assert forms == (False, False)
    assert not file.exists()


@pytest.mark.parametrize("content", ["", "[1]", '{"a": "b"}', "\x00"])
def test_a_damaged_cache_is_ignored(
    ask: Callable[..., tuple[bool, bool]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "forms.json").write_text(content)
    monkeypatch.setattr(conv_autotune, "_speed_up", lambda *_, **__: 2.0)
    assert ask() == (True, True)


def test_a_cache_that_cannot_be_written_costs_a_line_and_no_run(
    ask: Callable[..., tuple[bool, bool]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    monkeypatch.setattr(conv_autotune, "_speed_up", lambda *_, **__: 2.0)
    with caplog.at_level("INFO"):
        assert ask() == (True, True)
    assert "could not be stored" in caplog.text
