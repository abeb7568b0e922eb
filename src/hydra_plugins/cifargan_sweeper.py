"""Tells Hydra how `cifargan train -m` sweeps. Every program with Hydra imports this file, so it imports little."""

from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class CifarganSweeperConf:
    """What `hydra/sweeper=cifargan` stands for."""

    _target_: str = "hydra_plugins.cifargan_sweeper.CifarganSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="cifargan", node=CifarganSweeperConf, provider="cifargan")


class CifarganSweeper(Sweeper):
    """Every combination of the values given, and only those jobs launched that the sweep says are to do."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra has composed and make the launcher that it asks for."""
        self.context = hydra_context
        self.task = task_function
        self.sweep_config = config
        self.sweep_launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Any:
        """Plan the jobs of these overrides, then launch what is to do."""
        from cifargan.cli.sweep import Sweep, combinations

        if not isinstance(self.task, Sweep):
            raise TypeError("this sweeper launches the jobs of `cifargan train -m` alone")
        loader = self.context.config_loader
        jobs = combinations(OverridesParser.create(config_loader=loader).parse_overrides(arguments))
        for job in jobs:
            # A typo is told before the first job begins.
            loader.load_sweep_config(self.sweep_config, job)
        todo = self.task.plan(self.sweep_config, jobs)
        if todo:
            self.task.watch(lambda: self.sweep_launcher.launch(todo, initial_job_idx=0))
