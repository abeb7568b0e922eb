"""`cifargan bench` from end to end, and its messages."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch

from cifargan.bench.gate import Check
from cifargan.bench.presets import compose
from cifargan.bench.timing import IMAGES, TURN_SECONDS
from cifargan.cli.bench import parser, scaled

Command = Callable[..., CompletedProcess[str]]


def test_a_whole_benchmark(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [Check(name="images", error=1e-15, limit=1e-10)]
    monkeypatch.setattr("cifargan.cli.bench.passed_gate", lambda config: checks)
    monkeypatch.setitem(IMAGES, "cpu", 32)
    monkeypatch.setitem(TURN_SECONDS, "cpu", 0.0)
    size = ("--width", "8", "--batch-size", "2", "--rounds", "2", "--no-bf16")
    ran = command("bench", "cdcgan_concat", "--device", "cpu", *size)
    assert ran.returncode == 0, ran.stderr
    (file,) = (tmp_path / "outputs" / "bench").glob("cdcgan_concat_cpu_*.json")
    lines = ran.stdout.splitlines()
    assert lines[-1] == str(file.relative_to(tmp_path))
    assert lines[1] == "batch      2, 1 + 1 updates an iteration"
    record = json.loads(file.read_text())
    names = [result["name"] for result in record["results"]]
    assert names[:2] == ["reference, fp32", "cifargan, plain"]
    assert names[-1].endswith("= all")
    assert len([line for line in lines if line.startswith(tuple(names))]) == len(names)
    assert record["flops"] > 1e6
    assert record["traffic"] > 1e6
    assert record["roofline"]["bytes"] > 0
    assert record["machine"]["versions"]["cifargan"]
    assert record["config"]["trainer"]["batch_size"] == 2
    for result in record["results"]:
        assert len(result["seconds"]) == 2
        assert result["images_per_second"] == pytest.approx(2 * result["iterations_per_second"])
        assert (result["peak_bytes"], result["replayed"]) == (None, None)
    assert record["results"][0]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert record["checks"] == [{"name": "images", "error": 1e-15, "limit": 1e-10}]


def test_the_gate_alone(command: Command, tmp_path: Path) -> None:
    ran = command("bench", "cdcgan_concat", "--device", "cpu", "--only-gate", "--json", "gate.json")
    assert ran.returncode == 0, ran.stderr
    assert "gradients of the generator" in ran.stdout
    assert "it/s" not in ran.stdout
    record = json.loads((tmp_path / "gate.json").read_text())
    assert "results" not in record
    assert all(check["error"] <= check["limit"] for check in record["checks"])


def test_a_failed_gate_shows_no_timings(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [Check(name="images", error=1.0, limit=1e-10), Check(name="logits", error=0.0, limit=1e-10)]
    monkeypatch.setattr("cifargan.bench.gate.exact_checks", lambda *_: checks)
    ran = command("bench", "dcgan", "--device", "cpu")
    assert ran.returncode == 2
    assert "it/s" not in ran.stdout
    assert ran.stderr.count("\n") == 1
    assert "images (1.0e+00, limit 1e-10)" in ran.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bigan",), "did you mean biggan"),
        (("acbiggan",), "the plain PyTorch reference cannot train it"),
        (("--rounds", "0"), "--rounds: 0 is no whole number"),
        (("--onlygate",), "did you mean --only-gate?"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str, command: Command) -> None:
    ran = command("bench", "--device", "cpu", *arguments)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_sizes() -> None:
    full = compose("biggan_original", "device=cpu")
    own, asked = parser().parse_args([]), parser().parse_args(["--width", "64", "--batch-size", "3"])
    sizes = []
    for options in (own, asked):
        for device in ("cpu", "cuda"):
            config = scaled(full, options, torch.device(device))
            sizes.append((config.model.generator.channels, config.trainer.batch_size))
    assert sizes == [(32, 8), (256, 50), (64, 3), (64, 3)]
