"""Weights & Biases and MLflow: without a network, in the run's folder, unless the environment says otherwise.

Both are imported when a run begins, as they are extras, and take seconds.
"""

import os
import re
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifargan.runs.directory import RunDirectory
from cifargan.training.loggers import Logger, flat

PROJECT = "cifargan"
FINISH_SECONDS = 60.0  # to hand over what is left at the end: a network that is gone would be waited for for ever
IDS = "loggers.json"  # in the run's folder: by which names the services know this run
PARAMETERS_AT_ONCE = 100  # that MLflow takes in one call


class WandB(Logger):
    """Weights & Biases; offline unless WANDB_MODE says otherwise. A resumed run goes on under its id.

    Args:
        directory: the run's folder, in which `wandb/` is written.
        config: the settings.
    """

    what = "wandb"

    def __init__(self, directory: RunDirectory, *, config: Mapping[str, Any]) -> None:
        self.directory = directory
        self.config = config

    def open(self) -> None:
        """Begin or go on."""
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or "offline"  # a wrong one is refused by wandb, with its reason
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=self.directory.path.name,
            id=known_as(self.directory, self.what) or remember(self.directory, self.what, uuid.uuid4().hex[:12]),
            # Offline there is nothing to resume from: `wandb sync` brings the sessions together.
            resume=None if mode == "offline" else "allow",
            dir=str(self.directory.path),
            config=dict(self.config),
            mode=mode,
            settings=wandb.Settings(silent=True, console="off", finish_timeout=FINISH_SECONDS),
        )
        # Its own counter only goes up, and a run that goes back tells some steps again.
        self.run.define_metric("*", step_metric="step")
        self._drop_links()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log them as one entry."""
        self.run.log({"step": step, **values})

    def close(self) -> None:
        """Write what is left."""
        self.run.finish()
        self._drop_links()

    def _drop_links(self) -> None:
        """Its links to the newest session and to logs elsewhere: a run with links out of its folder is not gone on with."""
        for folder, folders, files in os.walk(self.directory.path / "wandb"):
            for path in (Path(folder, name) for name in (*folders, *files)):
                if path.is_symlink():
                    path.unlink()


class MLflow(Logger):
    """MLflow; files under `mlruns/` in the run's folder unless MLFLOW_TRACKING_URI names a server.

    Args:
        directory: the run's folder.
        config: the settings, recorded as parameters.
    """

    what = "mlflow"

    def __init__(self, directory: RunDirectory, *, config: Mapping[str, Any]) -> None:
        self.directory = directory
        self.config = config

    def open(self) -> None:
        """Begin or go on."""
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            uri = (self.directory.path / "mlruns").absolute().as_uri()
            # MLflow would rather have a database, and asks for this; nor is a run without a network to report home.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient(tracking_uri=uri)
        if known := known_as(self.directory, self.what):
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
        remember(self.directory, self.what, self.id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log them under their step."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(name, value, now, step) for name, value in values.items()])

    def close(self) -> None:
        """Mark the run as over."""
        self.client.set_terminated(self.id)


def known_as(directory: RunDirectory, service: str) -> str | None:
    """The id that a service knows this run by; None for one it has not met."""
    found = str(directory.read_json(IDS).get(service, ""))
    # The folder may be a stranger's, and an id becomes part of paths.
    return found if re.fullmatch(r"[0-9a-f]{8,64}", found) else None


def remember(directory: RunDirectory, service: str, identity: str) -> str:
    """Keep an id with the run, and return it."""
    directory.write_json(IDS, {**directory.read_json(IDS), service: identity})
    return identity
