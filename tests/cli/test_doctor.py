"""`cifargan doctor`: its findings, and when it fails."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from cifargan.cli import doctor

Command = Callable[..., CompletedProcess[str]]


def lines(ran: CompletedProcess[str]) -> dict[str, str]:
    found = ran.stdout.split("\n\n")[0].splitlines()
    return {line[4:].split("  ")[0].strip(): line for line in found}


@pytest.fixture(autouse=True)
def own_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("CIFARGAN_INCEPTION_WEIGHTS", raising=False)


def test_a_bare_machine_is_fine_and_says_what_can_be_added(command: Command, files: Callable[[], object]) -> None:
    ran = command("doctor")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = lines(ran)
    assert "torch 2" in found["cifargan"]
    assert found["CIFAR-10"].startswith("- ")
    assert "CIFAR-10: cifargan data fetch" in ran.stdout
    assert found["Inception"].startswith("- ")
    assert "GB free" in found["cache"]
    assert "nothing that training needs is broken" in ran.stdout
    assert files() == {}


def test_a_folder_that_cannot_be_written_or_is_full_is_broken(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    ran = command("doctor", "--output-root", "file/runs")
    assert ran.returncode == 2
    assert lines(ran)["output_root"].startswith("! ")
    assert ran.stdout.endswith("broken: output_root\n")
    monkeypatch.setattr(doctor, "LITTLE", 1e18)
    ran = command("doctor")
    assert ran.returncode == 2
    assert "output_root: free some space" in ran.stdout


def test_weights_named_in_the_environment_must_exist(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFARGAN_INCEPTION_WEIGHTS", str(tmp_path / "none.pth"))
    assert lines(command("doctor"))["Inception"].startswith("! ")
    (tmp_path / "none.pth").write_bytes(b"other")
    ran = command("doctor")
    assert ran.returncode == 0
    assert "not the published weights" in lines(ran)["Inception"]


def test_packages_that_are_not_installed(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["torch>=2", "nothing-like-it>=1", 'unheard-of>=2; extra == "more"', 'torch>=1; extra == "same"']
    monkeypatch.setattr(doctor, "requires", lambda name: asked)
    ran = command("doctor")
    assert ran.returncode == 2
    found = lines(ran)
    assert found["nothing-like-it"].startswith("! ")
    assert found["extra more"].startswith("- ")
    assert "extra same" not in found
    assert "pip install 'cifargan[more]'" in ran.stdout


def test_a_gpu_that_torch_cannot_use_or_that_fails_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifargan.device.unused_gpu", lambda: "its driver is too old")
    gpu, _ = doctor.hardware()
    assert (gpu.state, gpu.advice) == ("!", "its driver is too old")

    def fail(index: int) -> Any:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.mem_get_info", fail)
    gpu, _ = doctor.hardware()
    assert (gpu.state, gpu.what, gpu.detail) == ("!", "cuda:0", "no kernel image")
