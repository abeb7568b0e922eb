"""`cifargan train`: the arguments, and how Hydra runs the jobs of a sweep."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from cifargan import entry
from cifargan.cli.launching import require_launcher
from cifargan.cli.options import SHOW, as_arguments, split_flags
from cifargan.cli.sweep import Sweep, plan, split_sweep, uses_processes
from cifargan.cli.sweep_summary import summarise
from cifargan.compose import key_of, quoted, reject_null_groups, with_init
from cifargan.distributed import process_group
from cifargan.explain import report
from cifargan.processes import agreed_overrides, met_by_all
from cifargan.run_log import terminal_log
from cifargan.schema import conf_dir

HELP = """cifargan train [key=value ...]

Trains a GAN under outputs/<name>/<time>/. Every setting can be given; groups of
settings are chosen by name, and `cifargan ls GROUP` explains them:
  experiment=   a whole recipe           model=      generator, discriminator
  loss=         bce hinge wasserstein    data=       cifar10 folder digits
  regularizer=  none lecam cr            augment=    none diffaugment
  optimizer=    adam rmsprop             evaluator=  inception auto none ...
  seed=1 device=cpu precision=bf16 deterministic=true trainer.steps=50000 ...
  resume=RUN    continue exactly where a run stopped; resume=latest: the newest run,
                or a new one where there is none: one line for every job script
  debug=fast    two steps of everything, on digits
  -m            a run for each combination of comma-separated values, a table;
                with sweep=resume only those that the sweep lacks
  hydra/launcher=joblib hydra.launcher.n_jobs=2   two runs of a sweep at a time
  --cfg job     show the composed configuration and stop
  --config-dir DIR   configs of your own (`cifargan cp` copies one to be edited)

examples:
  cifargan train experiment=quickstart
  cifargan train model=biggan loss=hinge augment=diffaugment trainer.steps=50000
  cifargan train -m model=dcgan,cdcgan loss=bce,hinge seed=1,2
"""


@dataclass(frozen=True)
class Outcome:
    """How one job ended."""

    directory: Path
    overrides: list[str]
    result: entry.Result | None
    error: Exception | None


def run(arguments: list[str]) -> int:
    """Train once, or once for each job of a sweep."""
    if "--help" in arguments or "-h" in arguments:
        print(HELP, end="")
        return 0
    with process_group():
        with met_by_all():
            flags, overrides = split_flags(arguments)
            sweep, shows = "--multirun" in flags, any(flag in flags for flag in SHOW)
            overrides, resumes = split_sweep(overrides, sweep=sweep)
            reject_null_groups(overrides)
            require_launcher(overrides, sweep=sweep or shows, own="--config-dir" in flags)
            if sweep or shows:
                overrides = agreed_overrides(overrides, sweep=sweep)
                command = ["cifargan train", *as_arguments(flags), *overrides]
                if sweep:
                    directory, jobs = plan(overrides, resume=resumes)
                    return run_sweep(Sweep(job, command, directory, jobs, uses_processes(overrides)))
                with_hydra(_nothing, command)
                return 0
        with terminal_log(alone=True):
            entry.train(overrides, flags.get("--config-dir"), config_name=flags.get("--config-name", "train"))
    return 0


def _nothing(_: DictConfig) -> None:
    """The task of a command that only shows a configuration: Hydra shows it, and calls no task."""


def with_hydra(task: Callable[[DictConfig], None], command: list[str]) -> None:
    """Let Hydra compose what a command line asks for, and call `task` with it.

    Raises:
        HydraException: Hydra cannot compose it.
    """
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    # Hydra reads the program's arguments itself, and prints errors itself unless HYDRA_FULL_ERROR is set.
    program, *rest = command
    flags, overrides = split_flags(rest)
    sys.argv = [program, *as_arguments(flags), *with_init(overrides)]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(task)()
    finally:
        sys.argv = before[0]
        if before[1] is None:
            del os.environ["HYDRA_FULL_ERROR"]


def run_sweep(sweep: Sweep) -> int:
    """Run the jobs of a sweep and print a table of them, however it ends."""
    own = [word for word in sweep.command if key_of(word) not in ("hydra.sweep.dir", "hydra.sweep.subdir")]
    with sweep.running():
        with_hydra(sweep, [*own, f"hydra.sweep.dir={quoted(sweep.directory)}", "hydra.sweep.subdir=."])
    return summarise(sweep)


def job(config: DictConfig, command: list[str], folder: Path | None = None) -> Outcome:
    """One training within a task of Hydra, its errors caught: a job that fails does not end its sweep."""
    context = HydraConfig.get()
    sweep = context.mode == RunMode.MULTIRUN
    directory = folder or Path(context.runtime.output_dir)
    overrides = [override for override in context.overrides.task if key_of(override) != "resume"]
    try:
        result = entry.run(config, directory, overrides=overrides, command=command, keep_log=sweep)
    except Exception as error:
        if sweep:
            report(error)
        return Outcome(directory, overrides, None, error)
    return Outcome(directory, overrides, result, None)
