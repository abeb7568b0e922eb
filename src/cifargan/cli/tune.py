"""`cifargan tune`: search for good settings, one training a trial."""

import contextlib
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from cifargan.cli.options import as_arguments, split_flags
from cifargan.cli.train import Outcome, job, with_hydra
from cifargan.compose import key_of, quoted, reject_null_groups
from cifargan.config import GROUPS, Settings, parse, plain
from cifargan.errors import UserError, did_you_mean
from cifargan.evaluation.records import Record
from cifargan.explain import explain, report
from cifargan.runs.read import summary_of
from cifargan.training.interruption import InterruptedRunError
from cifargan.training.scoring import Watcher, watcher

if TYPE_CHECKING:
    from optuna.trial import Trial

    from cifargan.tuning.space import Space
    from cifargan.tuning.study import Study, Trained

HELP = """cifargan tune [key=interval(a,b) ...] [key=choice(a,b) ...] [key=value ...]

Searches for the settings that give the best score, one training a trial, and prints them as a
command. Settings that are searched; quote them, since a shell reads brackets itself:
  'optimizer.generator.lr=interval(1e-5,1e-3)'   a number; by orders of magnitude where the ends
                                                 are two or more apart, or with tag(log,...);
                                                 tag(linear,...) forbids it
  'trainer.d_steps=int(interval(1,5))'           a whole number
  'trainer.batch_size=range(32,129,32)'          one of 32, 64, 96, 128
  'regularizer=choice(none,lecam)'               one of these
All other settings are the same in every trial, as in cifargan train.

  n_trials=30       trials in all (default: 20)
  study=NAME        runs lie under outputs/tune/NAME/<number> (default: tune)
  storage=URL       where Optuna keeps the study (default: sqlite, in that folder)
  objective=KEY     a score by its name in evaluation.json, such as fid_n10000_train; a trial is
                    worth the best that it reached (default: the score that decides the best
                    checkpoint; then there is no final scoring, unless evaluator.final_samples=)
  pruner=median     ends trials that are worse than others were by then; or hyperband, none
  --config-dir DIR  configs of your own, as in cifargan train

The same command goes on with a study until it has n_trials. Ctrl-C stops and loses nothing but
the trial in hand.

examples:
  cifargan tune experiment=biggan 'optimizer.generator.lr=interval(1e-5,1e-3)' n_trials=30
  cifargan tune model=dcgan 'regularizer=choice(none,lecam)' 'loss=choice(bce,hinge)' study=parts
"""
OWN = {"n_trials": "20", "storage": "", "study": "tune", "objective": "", "pruner": "median"}
FINAL = "evaluator.final_samples"


class PrunedError(InterruptedRunError):
    """A trial is ended, since others were better by then."""


def run(arguments: list[str]) -> int:
    """Search until there are as many trials as asked for."""
    if "--help" in arguments or "-h" in arguments or not arguments:
        print(HELP, end="")
        return 0
    given, settings = split_flags(arguments)
    if unfit := [flag for flag in given if flag != "--config-dir"]:
        raise UserError(f"{unfit[0]}: does not go with a search, see cifargan tune --help")
    flags = as_arguments(given)
    own, overrides = split_own(settings)
    if find_spec("optuna") is None:
        raise UserError("cifargan tune needs Optuna: pip install 'cifargan[tune]'")
    # Optuna takes a while to import.
    from cifargan.tuning.space import space_of
    from cifargan.tuning.study import Study, direction_of, pruner_of

    objective = own["objective"] or None
    if objective:
        direction_of(objective)  # reports an unknown one before the configurations are checked
    space = space_of(overrides)
    config = check_space(space, flags)
    direction = direction_of(objective or (config.evaluator.get("metrics") or ["fid"])[0])
    if objective is None and not any(key_of(override) == FINAL for override in overrides):
        # Its scores would decide nothing, and take longer than many a trial.
        space = space_of([*overrides, f"{FINAL}=0"])
    directory = Path(config.output_root).absolute() / "tune" / own["study"]
    directory.mkdir(parents=True, exist_ok=True)
    study = Study(
        own["study"],
        storage=own["storage"] or f"sqlite:///{directory / 'study.db'}",
        directory=directory,
        space=space,
        objective=objective,
        direction=direction,
        pruner=pruner_of(own["pruner"], every=config.evaluator.every, steps=config.trainer.steps),
    )
    trials = Trials(objective, flags)
    try:
        finished = study.run(int(own["n_trials"]), trials.train, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        finished = False
    print_best(study, own, overrides, flags)
    if finished:
        return 0
    return report(trials.stopped_by or KeyboardInterrupt())


def split_own(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """The settings of the search, and the overrides.

    Raises:
        UserError: a setting that cannot be.
    """
    from cifargan.explain import groups

    own, overrides = dict(OWN), []
    known = [*OWN, *GROUPS, *groups(), *Settings.__dataclass_fields__]
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in OWN:
            own[key] = value.strip("'\"")
        elif key in ("resume", "sweep") or key_of(argument).startswith("hydra"):
            raise UserError(f"{argument}: does not go with a search; its runs lie under outputs/tune/{own['study']}")
        elif key.isidentifier() and key not in known and (hint := did_you_mean(key, known)):
            raise UserError(f"{key}: no such setting{hint}")
        else:
            overrides.append(argument)
    if not own["n_trials"].isdecimal() or int(own["n_trials"]) < 1:
        raise UserError(f"n_trials={own['n_trials']}: must be a whole number from 1 on")
    if own["pruner"] not in ("median", "hyperband", "none"):
        raise UserError(f"pruner={own['pruner']}: choose from median, hyperband, none")
    if not own["study"] or Path(own["study"]).name != own["study"] or own["study"] == "..":
        raise UserError(f"study={own['study']}: is a name, and becomes that of a folder")
    reject_null_groups(overrides)
    return own, overrides


def check_space(space: "Space", flags: list[str]) -> DictConfig:
    """Compose and check a configuration for each choice, so that a typo is told before the first training.

    Returns:
        One of them.

    Raises:
        UserError: one has a setting that nothing understands, or is never scored.
    """
    from optuna.distributions import CategoricalDistribution

    first = {
        key: d.choices[0] if isinstance(d, CategoricalDistribution) else d.low  # type: ignore[attr-defined]
        for key, d in space.varied.items()
    }
    variants = [first]
    for key, distribution in space.varied.items():
        if isinstance(distribution, CategoricalDistribution):
            variants += [{**first, key: choice} for choice in distribution.choices[1:]]
        else:
            variants.append({**first, key: distribution.high})  # type: ignore[attr-defined]
    config = OmegaConf.create()
    for variant in variants:
        config = composed(space.overrides(variant), flags)
        if config.evaluator.name == "none":
            raise UserError("evaluator=none gives no scores to search by: choose another evaluator")
    return config


def composed(overrides: list[str], flags: list[str]) -> DictConfig:
    """The configuration that these overrides and Hydra's flags ask for, checked and resolved."""
    found: list[DictConfig] = []

    def keep(config: DictConfig) -> None:
        found.append(OmegaConf.create(plain(config)))

    with_hydra(keep, ["cifargan train", *flags, *overrides, "hydra.run.dir='.'"])
    parse(found[0])
    return found[0]


class Trials:
    """Trains the trials of a study, each as `cifargan train` would.

    Args:
        objective: the key of a score; None: the monitored one.
        flags: Hydra's, for each of them.
    """

    def __init__(self, objective: str | None, flags: list[str]) -> None:
        self.objective = objective
        self.flags = flags
        self.stopped_by: Exception | None = None

    def train(self, overrides: list[str], directory: Path, trial: "Trial") -> "Trained":
        """Train once in `directory`, as far as the pruner lets it.

        Raises:
            UserError: it came to its end without the score that was to decide.
        """
        from cifargan.tuning.study import Trained

        command = ["cifargan train", *self.flags, *overrides, f"hydra.run.dir={quoted(directory)}"]
        outcomes: list[Outcome] = []
        pruned = False

        def look(step: int, records: list[Record], monitor: str) -> None:
            nonlocal pruned
            for record in records:
                if record.key == (self.objective or monitor):
                    trial.report(record.value, step)
                    if pruned := trial.should_prune():
                        raise PrunedError(0, f"pruned at step {step}: other trials were better by then")

        with watching(look):
            with_hydra(lambda config: outcomes.append(job(config, command)), command)
        (outcome,) = outcomes
        if isinstance(outcome.error, InterruptedRunError) and not pruned:
            self.stopped_by = outcome.error
            return Trained(interrupted=True)
        if outcome.error is not None and not pruned:
            return Trained(error=explain(outcome.error) or f"a bug in cifargan: {outcome.error!r}")
        return Trained(value=self.value_of(directory), pruned=pruned)

    def value_of(self, directory: Path) -> float:
        """The best value that a run reached."""
        run = summary_of(directory)
        if self.objective is None and run.best is not None:
            return run.best.value
        every = [*run.history, *run.scores]
        found = [score for score in every if score.key == self.objective]
        if not found:
            keys = list(dict.fromkeys(score.key for score in every))
            hint = did_you_mean(self.objective or "", keys) or f"; there are {', '.join(keys) or 'none'}"
            raise UserError(f"objective={self.objective}: {directory} has no such score{hint}")
        best = min if found[0].better == "lower" else max
        return best(score.value for score in found)


@contextlib.contextmanager
def watching(look: Watcher) -> Iterator[None]:
    """Have `look` see the scores of what is trained meanwhile."""
    token = watcher.set(look)
    try:
        yield
    finally:
        watcher.reset(token)


def print_best(study: "Study", own: dict[str, str], overrides: list[str], flags: list[str]) -> None:
    """What the search has found so far, as a command to paste, and how to go on with it."""
    print(f"\n{study.counted()} of n_trials={own['n_trials']}, in {study.directory}")
    best = study.best
    if best is None:
        print("no trial has come to its end yet")
        return
    print(f"best: {best.value:.4g} at trial {best.number}")
    given = [
        override
        for override in study.space.overrides(best.params)
        if override in overrides or key_of(override) != FINAL
    ]
    print(f"cifargan train {shlex.join([*flags, *given])}")
