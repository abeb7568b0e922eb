"""`cifargan tune`: search for good settings, one training for each trial."""

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from cifargan import entry
from cifargan.cli.options import as_arguments, split_flags
from cifargan.compose import compose, key_of, own_hydra, quoted, reject_null_groups, with_init
from cifargan.config import GROUPS, parse
from cifargan.config_files import groups
from cifargan.errors import UserError, did_you_mean
from cifargan.evaluation.records import Record
from cifargan.run_log import terminal_log
from cifargan.runs.read import summary_of
from cifargan.settings import Settings
from cifargan.training.interruption import InterruptedRunError
from cifargan.training.scoring import watcher

if TYPE_CHECKING:
    from optuna.trial import Trial

    from cifargan.tuning.space import Space
    from cifargan.tuning.study import Study

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
  objective=KEY     a score by its name in evaluation.json, such as fid_n10000_train; of a trial
                    its best value counts (default: the score that decides the best
                    checkpoint; then there is no final scoring, unless evaluator.final_samples=)
  pruner=median     ends trials that are worse than others were by then; or hyperband, none
  --config-dir DIR  configs of your own, as in cifargan train

The same command resumes a study until it has n_trials. Ctrl-C stops it and loses only the current
trial.

examples:
  cifargan tune experiment=biggan 'optimizer.generator.lr=interval(1e-5,1e-3)' n_trials=30
  cifargan tune model=dcgan 'regularizer=choice(none,lecam)' 'loss=choice(bce,hinge)' study=parts
"""
OWN = {"n_trials": "20", "storage": "", "study": "tune", "objective": "", "pruner": "median"}
FINAL = "evaluator.final_samples"
PRUNED = 0  # in place of the number of a signal


def run(arguments: list[str]) -> int:
    """Search until there are `n_trials` trials."""
    if "--help" in arguments or "-h" in arguments or not arguments:
        print(HELP, end="")
        return 0
    flags, settings = split_flags(arguments)
    if unfit := [flag for flag in flags if flag != "--config-dir"]:
        shown = next(word for word in arguments if word.startswith("-") and word in (unfit[0], unfit[0][1:3]))
        raise UserError(f"{shown}: does not go with a search, see cifargan tune --help")
    own, overrides = split_own(settings)
    if find_spec("optuna") is None:
        raise UserError("cifargan tune needs Optuna: pip install 'cifargan[tune]'")
    # Optuna takes a while to import.
    from cifargan.tuning.space import space_of
    from cifargan.tuning.study import Study, direction_of, pruner_of

    objective, config_dir = own["objective"] or None, flags.get("--config-dir")
    if objective:
        direction_of(objective)  # reports an unknown one before the configurations are checked
    space = space_of(overrides)
    config = check_space(space, config_dir)
    direction = direction_of(objective or (config.evaluator.get("metrics") or ["fid"])[0])
    if objective is None and not any(key_of(override) == FINAL for override in overrides):
        space = space_of([*overrides, f"{FINAL}=0"])  # final scores would decide nothing, and take long
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

    def train(overrides: list[str], directory: Path, trial: "Trial") -> float:
        return train_trial(overrides, directory, trial, objective=objective, config_dir=config_dir)

    try:
        with terminal_log(alone=True):
            study.run(int(own["n_trials"]), train, lambda line: print(line, flush=True))
    finally:
        print_best(study, own, overrides, as_arguments(flags))
    return 0


def split_own(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """The settings of the search, and the overrides of its trainings.

    Raises:
        UserError: a setting is unknown or has a wrong value.
    """
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
        raise UserError(f"study={own['study']}: must be a name, it becomes the name of a folder")
    reject_null_groups(overrides)
    return own, overrides


def check_space(space: "Space", config_dir: str | None) -> DictConfig:
    """Compose and check a configuration for each choice, so that a typo is reported before the first training.

    Returns:
        One of them.

    Raises:
        UserError: a setting is wrong, or nothing is scored.
    """
    ends = {key: getattr(one, "choices", None) or (one.low, one.high) for key, one in space.varied.items()}  # type: ignore[attr-defined]
    first = {key: values[0] for key, values in ends.items()}
    with own_hydra(config_dir):
        for variant in [first, *({**first, key: value} for key, values in ends.items() for value in values[1:])]:
            config = compose(with_init(space.overrides(variant))).config
            parse(config)
            if config.evaluator.name == "none":
                raise UserError("evaluator=none gives no scores to search by: choose another evaluator")
    return config


def train_trial(
    overrides: list[str], directory: Path, trial: "Trial", *, objective: str | None, config_dir: str | None = None
) -> float:
    """Train once in `directory`, as far as the pruner lets it, and return the best value of the objective.

    Raises:
        optuna.TrialPruned: the pruner has stopped it.
        UserError: it has no score of that name; or as in `cifargan train`.
    """
    import optuna

    def look(step: int, records: list[Record], monitor: str) -> None:
        for record in records:
            if record.key == (objective or monitor):
                trial.report(record.value, step)
                if trial.should_prune():
                    raise InterruptedRunError(PRUNED, f"pruned at step {step}: other trials were better at that step")

    token = watcher.set(look)
    try:
        entry.train([*overrides, f"hydra.run.dir={quoted(directory)}"], config_dir)
    except InterruptedRunError as error:
        if error.signal != PRUNED:
            raise
        raise optuna.TrialPruned(str(error)) from error
    finally:
        watcher.reset(token)
    return value_of(directory, objective)


def value_of(directory: Path, objective: str | None) -> float:
    """The best value of a score that a run reached; None is the score that decides the best checkpoint."""
    run = summary_of(directory)
    if objective is None and run.best is not None:
        return run.best.value
    every = [*run.history, *run.scores]
    found = [score for score in every if score.key == objective]
    if not found:
        keys = list(dict.fromkeys(score.key for score in every))
        hint = did_you_mean(objective or "", keys) or f"; there are {', '.join(keys) or 'none'}"
        raise UserError(f"objective={objective}: {directory} has no such score{hint}")
    best = min if found[0].better == "lower" else max
    return best(score.value for score in found)


def print_best(study: "Study", own: dict[str, str], overrides: list[str], flags: list[str]) -> None:
    """Print the best trial so far as a command."""
    print(f"\n{study.counted()} of n_trials={own['n_trials']}, in {study.directory}")
    best = study.best
    if best is None:
        print("no trial has finished yet")
        return
    print(f"best: {best.value:.4g} at trial {best.number}")
    given = [one for one in study.space.overrides(best.params) if one in overrides or key_of(one) != FINAL]
    print(f"cifargan train {shlex.join([*flags, *given])}")
