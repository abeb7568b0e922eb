"""Weights & Biases and MLflow, without a network."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cifargan.runs.directory import RunDirectory
from cifargan.training.log import RunLog
from cifargan.training.loggers import JSONLines
from cifargan.training.services import IDS, MLflow, WandB, saved_id

CONFIG = {"name": "small", "trainer": {"steps": 40, "loggers": ["csv"]}, "many": {str(i): i for i in range(120)}}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    # What the services set for the process is restored afterwards.
    for name in ("MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "true")
    directory = RunDirectory(tmp_path / "run")
    directory.claim()
    return directory


def session(directory: RunDirectory, kind: type[WandB] | type[MLflow], first_step: int, *steps: int) -> None:
    loggers = [JSONLines(directory, CONFIG), kind(directory, CONFIG)]
    with RunLog(directory, loggers, first_step=first_step) as log:
        for step in steps:
            log.scalars(step, {"loss/generator": step / 10, "broken": float("nan")})


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_mlflow_keeps_a_run_in_its_folder_and_resumes_it(
    directory: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    session(directory, MLflow, 0, 5, 10)
    session(directory, MLflow, 10, 15)
    assert "has failed" not in caplog.text
    client = mlflow.MlflowClient(tracking_uri=(directory.path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("cifargan")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == saved_id(directory, "mlflow")
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["trainer.steps"] == "40"
    assert len(run.data.params) == 123
    history = client.get_metric_history(run.info.run_id, "loss/generator")
    assert [(metric.step, metric.value) for metric in history] == [(5, 0.5), (10, 1.0), (15, 1.5)]
    assert list(run.data.metrics) == ["loss/generator"]


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
def test_wandb_is_offline_in_the_folder_and_keeps_its_id(
    directory: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    session(directory, WandB, 0, 5, 10)
    identity = saved_id(directory, "wandb")
    session(directory, WandB, 10, 15)
    assert "has failed" not in caplog.text
    files = list((directory.path / "wandb").glob("offline-run-*/*.wandb"))
    assert {path.name for path in files} == {f"run-{identity}.wandb"}
    assert any(b"loss/generator" in path.read_bytes() for path in files)
    # A run with links out of its folder is refused.
    with directory.lock():
        pass


class FakeRun:
    """A run of wandb that keeps what it is given."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    def define_metric(self, *_: Any, **__: Any) -> None: ...

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self) -> None: ...


@pytest.mark.parametrize(("mode", "resume"), [(None, None), ("online", "allow")])
def test_wandb_resumes_its_run_and_is_offline_by_default(
    mode: str | None, resume: str | None, directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    run = FakeRun()

    def init(**given: Any) -> FakeRun:
        asked.append(given)
        return run

    fake = SimpleNamespace(init=init, Settings=lambda **given: given)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    if mode is not None:
        monkeypatch.setenv("WANDB_MODE", mode)
    session(directory, WandB, 0, 5)
    session(directory, WandB, 5, 10)
    first, second = asked
    assert first == second
    assert (first["mode"], first["resume"], first["name"]) == (mode or "offline", resume, "run")
    assert first["dir"] == str(directory.path)
    assert first["config"] == CONFIG
    assert run.logged == [{"step": 5, "loss/generator": 0.5}, {"step": 10, "loss/generator": 1.0}]


def test_an_unreachable_service_costs_a_warning(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(**_: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=fail, Settings=dict))
    session(directory, WandB, 0, 5, 10)
    assert len(directory.metrics.read_text().splitlines()) == 2
    (line,) = [record.getMessage() for record in caplog.records]
    assert "wandb has failed (no route to host)" in line


@pytest.mark.parametrize("text", ['{"wandb": "../../x"}', '{"wandb": ["a"]}', "[1]", "{", '{"wandb": null}'])
def test_a_damaged_id_is_not_used(text: str, directory: RunDirectory) -> None:
    (directory.path / IDS).write_text(text)
    assert saved_id(directory, "wandb") is None
