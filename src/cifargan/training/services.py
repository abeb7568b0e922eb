"""Loggers for Weights & Biases and MLflow: in the run's folder, without a network unless the environment asks for one.

Both are extras whose import takes seconds, so they are imported when a run begins.
"""

import os
import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifargan.runs.directory import RunDirectory
from cifargan.training.loggers import Logger, finite, flat

PROJECT = "cifargan"
FINISH_SECONDS = 60.0  # for the last upload; without a limit wandb waits for an unreachable network forever
IDS = "loggers.json"  # in the run's folder: the run's ids at the services
PARAMETERS_AT_ONCE = 100  # MLflow's limit for a call


class WandB(Logger):
    """Weights & Biases; offline unless WANDB_MODE says otherwise. A resumed run keeps its id."""

    what = "wandb"

    def open(self, step: int) -> None:  # noqa: ARG002 - wandb cannot drop steps
        """Begin or resume."""
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or "offline"  # wandb reports an invalid one
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=self.directory.path.name,
            id=saved_id(self.directory, self.what) or save_id(self.directory, self.what, uuid.uuid4().hex[:12]),
            # Offline there is nothing to resume from: `wandb sync` joins the sessions.
            resume=None if mode == "offline" else "allow",
            dir=str(self.directory.path),
            config=dict(self.config),
            mode=mode,
            settings=wandb.Settings(silent=True, console="off", finish_timeout=FINISH_SECONDS),
        )
        # wandb's own step only increases; after a rollback some steps are logged again.
        self.run.define_metric("*", step_metric="step")
        self._remove_links()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log one entry."""
        self.run.log({"step": step, **finite(values)})

    def rewind(self, step: int) -> None:
        """Do nothing: the later entries of a step count."""

    def close(self) -> None:
        """Upload or write what is left."""
        self.run.finish()
        self._remove_links()

    def _remove_links(self) -> None:
        """Remove wandb's links out of the run's folder: a run with such links is not resumed."""
        for folder, folders, files in os.walk(self.directory.path / "wandb"):
            for path in (Path(folder, name) for name in (*folders, *files)):
                if path.is_symlink():
                    path.unlink()


class MLflow(Logger):
    """MLflow; files under `mlruns/` in the run's folder unless MLFLOW_TRACKING_URI names a server."""

    what = "mlflow"

    def open(self, step: int) -> None:  # noqa: ARG002 - MLflow cannot drop steps
        """Begin, with the settings as parameters, or resume."""
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            uri = (self.directory.path / "mlruns").absolute().as_uri()
            # MLflow prefers a database and wants to be asked for files; telemetry needs a network.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient(tracking_uri=uri)
        if known := saved_id(self.directory, self.what):
            self.client.update_run(known, status="RUNNING")
            self.id = known
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = self.client.get_experiment_by_name(name)
        number = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
        self.id = self.client.create_run(number, run_name=self.directory.path.name).info.run_id
        parameters = [Param(key, str(value)) for key, value in flat(self.config).items()]
        for i in range(0, len(parameters), PARAMETERS_AT_ONCE):
            self.client.log_batch(self.id, params=parameters[i : i + PARAMETERS_AT_ONCE])
        save_id(self.directory, self.what, self.id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log them under their step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in finite(values).items()]
        self.client.log_batch(self.id, metrics=metrics)

    def rewind(self, step: int) -> None:
        """Do nothing: the later values of a step count."""

    def close(self) -> None:
        """Mark the run as finished."""
        self.client.set_terminated(self.id)


def saved_id(directory: RunDirectory, service: str) -> str | None:
    """The run's id at a service; None if it has none yet, or the file is damaged."""
    found = str(directory.read_json(IDS).get(service, ""))
    # The folder may come from somebody else, and an id becomes part of paths.
    return found if re.fullmatch(r"[0-9a-f]{8,64}", found) else None


def save_id(directory: RunDirectory, service: str, identity: str) -> str:
    """Keep an id with the run, and return it."""
    directory.write_json(IDS, {**directory.read_json(IDS), service: identity})
    return identity
