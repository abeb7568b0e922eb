"""Who takes part."""

from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from cifargan.bench.variants import Variant, has_bf16_units, variants
from cifargan.training.speed import Switches

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def changes(a: Variant, b: Variant) -> dict[str, Any]:
    """What another variant does differently."""
    old, new = ({"precision": v.precision, **(asdict(v.switches) if v.switches else {})} for v in (a, b))
    return {key: new[key] for key in new if new[key] != old[key]}


def test_on_a_cpu() -> None:
    found = variants(CPU, bf16=False, compiled=False)
    assert [each.switches is None for each in found] == [True, False, False, False, False, False]
    assert found[1].switches == Switches()
    steps = [changes(a, b) for a, b in pairwise(found[1:])]
    assert steps == [
        {"batched_spectral_norm": True},
        {"fold_up": True, "fold_down": True},
        {"fused": True},
        {"channels_last": True},
    ]
    assert {each.precision for each in found} == {"fp32"}


def test_bf16_and_compile_join_when_asked_for() -> None:
    found = variants(CPU, bf16=True, compiled=True)
    assert [each.name for each in found if each.switches is None] == ["reference, fp32", "reference, bf16"]
    assert changes(found[-3], found[-2]) == {"precision": "bf16"}
    assert changes(found[-2], found[-1]) == {"compile": "default"}


def test_on_a_gpu_one_switch_less_each_time_comes_last() -> None:
    found = variants(CUDA, bf16=True, compiled=False)
    assert all(each.tf32 for each in found)
    assert all(each.switches is None or each.switches.tf32 for each in found)
    (full,) = (each for each in found if each.name.endswith("= all"))
    assert full.switches == replace(
        Switches(),
        tf32=True,
        channels_last=True,
        fused=True,
        batched_spectral_norm=True,
        fold_up=True,
        fold_down=True,
        graph=True,
    )
    less = [changes(full, each) for each in found[found.index(full) + 1 :]]
    assert less == [
        {"batched_spectral_norm": False},
        {"fold_up": False, "fold_down": False},
        {"fused": False},
        {"channels_last": False},
        {"precision": "fp32"},
        {"graph": False},
        {"fold_up": False},
        {"fold_down": False},
    ]
    assert len({each.name for each in found}) == len(found)


@pytest.mark.parametrize("units", [True, False])
def test_bf16_units_of_a_cpu(monkeypatch: pytest.MonkeyPatch, units: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    assert has_bf16_units(CPU) == units
