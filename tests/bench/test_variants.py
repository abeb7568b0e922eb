"""Which variants are timed."""

from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pytest
import torch

from cifargan.bench.variants import Variant, has_bf16_units, variants
from cifargan.training.speed import SpeedOptions

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
STEPS = [
    {"batched_spectral_norm": True},
    {"fold_up": True, "fold_down": True},
    {"fused": True},
    {"channels_last": True},
]


def changes(a: Variant, b: Variant) -> dict[str, Any]:
    """What the second variant does differently."""
    old, new = ({"precision": v.precision, **(asdict(v.speed) if v.speed else {})} for v in (a, b))
    return {key: new[key] for key in new if new[key] != old[key]}


def test_on_a_cpu_each_step_adds_one_option() -> None:
    found = variants(CPU, bf16=False, compiled=False)
    assert [each.speed is None for each in found] == [True, False, False, False, False, False]
    assert found[1].speed == SpeedOptions()
    assert [changes(a, b) for a, b in pairwise(found[1:])] == STEPS
    assert {each.precision for each in found} == {"fp32"}


def test_bf16_and_compile_on_demand() -> None:
    found = variants(CPU, bf16=True, compiled=True)
    assert [each.name for each in found if each.speed is None] == ["reference, fp32", "reference, bf16"]
    assert [changes(a, b) for a, b in pairwise(found[2:])] == [*STEPS, {"precision": "bf16"}, {"compile": "default"}]


def test_on_a_gpu_variants_without_one_option_come_last() -> None:
    found = variants(CUDA, bf16=True, compiled=False)
    assert all(each.tf32 and (each.speed is None or each.speed.tf32) for each in found)
    (full,) = (i for i, each in enumerate(found) if each.name.endswith("= all"))
    steps = [*STEPS, {"precision": "bf16"}, {"graph": True}]
    assert [changes(a, b) for a, b in pairwise(found[2 : full + 1])] == steps
    assert [changes(each, found[full]) for each in found[full + 1 :]] == steps
    assert len({each.name for each in found}) == len(found)


@pytest.mark.parametrize("units", [True, False])
def test_bf16_units_of_a_cpu(monkeypatch: pytest.MonkeyPatch, units: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    assert has_bf16_units(CPU) == units
