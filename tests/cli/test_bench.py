"""`cifargan bench` from end to end, and what it says when something is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from cifargan.bench.gate import Check
from cifargan.bench.memory import Fit, Memory
from cifargan.bench.presets import compose
from cifargan.bench.run import IMAGES
from cifargan.cli.bench import memory_lines, parser, scaled

Command = Callable[..., CompletedProcess[str]]


@pytest.fixture
def open_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that opens at once; it has tests of its own."""
    monkeypatch.setattr("cifargan.bench.run.gate", lambda config: [Check(name="images", error=1e-15, limit=1e-10)])


@pytest.mark.slow
def test_a_whole_benchmark(command: Command, open_gate: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IMAGES, "cpu", 32)
    monkeypatch.setattr("cifargan.bench.run.BLOCK_SECONDS", {"cpu": 0.0})
    ran = command("bench", "cdcgan_concat", "--device", "cpu", "--width", "8", "--batch-size", "2", "--rounds", "2")
    assert ran.returncode == 0, ran.stderr
    (file,) = (tmp_path / "outputs" / "bench").glob("cdcgan_concat_cpu_*.json")
    lines = ran.stdout.splitlines()
    assert lines[-1] == str(file.relative_to(tmp_path))
    assert lines[0].startswith("preset     cdcgan_concat: generator 8 wide")

    record = json.loads(file.read_text())
    race = record["race"]
    names = [result["name"] for result in race["results"]]
    assert names[:2] == ["reference, fp32", "cifargan, plain"]
    assert names[-1].endswith("= all")
    rows = [line for line in lines if line.startswith(tuple(names))]
    assert len(rows) == len(names)
    assert race["flops"] > 1e6
    assert race["traffic"] > 1e6
    assert race["watched"] in names[1:]
    assert {"convolution", "convolution_backward"} < {spot["name"] for spot in race["hotspots"]}
    assert any(line.startswith(f"where the time of '{race['watched']}' goes") for line in lines)
    assert record["machine"]["versions"]["cifargan"]
    assert record["config"]["trainer"]["batch_size"] == 2
    for result in race["results"]:
        assert len(result["timing"]["seconds"]) == 2
        assert result["images_per_second"] > 0
        assert result["profile"]["host_waits"] == 0
        assert result["profile"]["operators"] > 100
        assert result["peak_bytes"] is None
    assert race["results"][0]["timing"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert record["checks"] == [{"name": "images", "error": 1e-15, "limit": 1e-10}]


def test_the_gate_alone(command: Command, tmp_path: Path) -> None:
    ran = command("bench", "cdcgan_concat", "--device", "cpu", "--only-gate", "--json", "gate.json")
    assert ran.returncode == 0, ran.stderr
    assert "gradients of the generator" in ran.stdout
    assert "it/s" not in ran.stdout
    record = json.loads((tmp_path / "gate.json").read_text())
    assert record["race"] is None
    assert all(check["error"] <= check["limit"] for check in record["checks"])


def test_a_shut_gate_shows_no_timings(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [Check(name="images", error=1.0, limit=1e-10), Check(name="logits", error=0.0, limit=1e-10)]
    monkeypatch.setattr("cifargan.bench.run.gate", lambda config: checks)
    ran = command("bench", "dcgan", "--device", "cpu")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        "error: cifargan and the reference differ, so nothing was timed: images (1.0e+00, limit 1e-10)\n"
    )
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bigan",), "error: cifargan bench bigan: no such preset; did you mean biggan"),
        (("acbiggan",), "error: cifargan bench acbiggan: the plain PyTorch reference cannot train it"),
        (("--rounds", "0"), "error: argument --rounds: 0 is no whole number from 1 on"),
        (("--onlygate",), "error: unrecognized arguments: --onlygate; did you mean --only-gate?"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], message: str, command: Command) -> None:
    ran = command("bench", "--device", "cpu", *arguments)
    assert ran.returncode == 2
    assert ran.stderr.startswith(message)
    assert ran.stderr.count("\n") == 1


def test_sizes() -> None:
    import torch

    full = compose("biggan_original", "device=cpu")
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    own = parser().parse_args([])
    assert scaled(full, own, cpu).model.generator.channels == 32
    assert scaled(full, own, cpu).trainer.batch_size == 8
    assert scaled(full, own, cuda).model.generator.channels == 256
    assert scaled(full, own, cuda).trainer.batch_size == 50
    asked = parser().parse_args(["--width", "64", "--batch-size", "3"])
    for device in (cpu, cuda):
        config = scaled(full, asked, device)
        assert (config.model.generator.channels, config.trainer.batch_size) == (64, 3)
    assert full.model.generator.channels == 256


def test_an_estimate_says_so() -> None:
    memory = Memory(
        estimated=True,
        precision="fp32",
        batch_size=64,
        peaks={16: 10**9},
        fits=[Fit(gigabytes=4, batch_size=40, accumulate=2), Fit(gigabytes=8, batch_size=0, accumulate=None)],
    )
    lines = memory_lines(memory)
    assert "ESTIMATED" in lines[0]
    assert lines[1].split() == ["batch", "16", "1.00", "GB"]
    assert lines[2].endswith("up to 40 at once; for trainer.batch_size=64: trainer.accumulate=2")
    assert lines[3].endswith("nothing fits")
