"""A study: trials asked of Optuna and told to it, kept in a storage from which it goes on."""

import json
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial, Trial, TrialState

from cifargan.errors import UserError
from cifargan.registry import METRICS, metric_of
from cifargan.runs.directory import RunDirectory
from cifargan.runs.lock import is_locked
from cifargan.tuning.space import Space

log = logging.getLogger(__name__)

STARTUP_TRIALS = 5  # that the median pruner lets run to their end
PRUNERS = ("median", "hyperband", "none")
INTERRUPTED = "interrupted"  # marks a trial that was not its settings' fault, and does not count


@dataclass(frozen=True)
class Trained:
    """How the training of a trial ended.

    Attributes:
        value: the objective; None where it failed.
        error: why it failed, in one line.
        pruned: whether it was stopped because others were better by then.
        interrupted: whether somebody stopped it.
    """

    value: float | None = None
    error: str = ""
    pruned: bool = False
    interrupted: bool = False


class Train(Protocol):
    """Trains with some overrides in a folder of its own, and reports each score to the trial."""

    def __call__(self, overrides: list[str], directory: Path, trial: Trial) -> Trained:
        """Train once."""


def direction_of(objective: str) -> Literal["minimize", "maximize"]:
    """Whether a score is to be low or high, by the metric that its name begins with.

    Raises:
        UserError: there is no such metric.
    """
    metric = metric_of(objective)
    if metric is None:
        raise UserError(
            f"objective={objective}: no score of that name; they begin with {', '.join(METRICS)}, and evaluation.json "
            "of a run has them all"
        )
    return "minimize" if metric.better == "lower" else "maximize"


def pruner_of(name: str, *, every: int, steps: int) -> BasePruner:
    """The pruner behind a name.

    Args:
        name: one of `PRUNERS`.
        every: steps between scores.
        steps: of a whole training.
    """
    if name == "hyperband":
        return HyperbandPruner(min_resource=min(every, steps), max_resource=steps)
    return MedianPruner(n_startup_trials=STARTUP_TRIALS) if name == "median" else NopPruner()


class Study:
    """The trials of one search.

    Args:
        name: of the study, in its storage.
        storage: an Optuna storage URL.
        directory: where the runs of the trials lie, a numbered folder each.
        space: what is searched.
        objective: the key of a score; None: the one by which a run's best checkpoint is kept.
        direction: whether it is to be low or high.
        pruner: when to stop a trial.

    Raises:
        UserError: the storage cannot be used, or has a study of that name that searches something else.
    """

    def __init__(
        self,
        name: str,
        *,
        storage: str,
        directory: Path,
        space: Space,
        objective: str | None,
        direction: Literal["minimize", "maximize"] = "minimize",
        pruner: BasePruner,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.directory = directory
        self.space = space
        try:
            self.study = optuna.create_study(
                study_name=name,
                storage=storage,
                direction=direction,
                pruner=pruner,
                load_if_exists=True,
            )
        except Exception as error:  # each kind of storage raises its own
            raise UserError(f"storage={storage}: cannot be used ({str(error).splitlines()[0]})") from error
        about = {
            "fixed": sorted(space.fixed),
            "varied": {key: described(distribution) for key, distribution in space.varied.items()},
            "objective": objective,
        }
        known = self.study.user_attrs.get("about")
        if known is None:
            if RunDirectory(directory / "0").holds_a_run():
                raise UserError(
                    f"{directory} holds trials of another study: choose another study=, or give its storage="
                )
            self.study.set_user_attr("about", about)
        elif known != about:
            different = ", ".join(key for key in about if known.get(key) != about[key])
            raise UserError(
                f"study={name} is there already and searches something else ({different}): choose another name"
            )
        self._bury()

    def _bury(self) -> None:
        """Mark trials failed whose processes have died."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if is_locked(self.directory / str(trial.number)) is not True:
                self._note_interrupted(trial)
                self.study.tell(trial.number, state=TrialState.FAIL)

    def _note_interrupted(self, trial: FrozenTrial | Trial) -> None:
        self.study._storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)

    @property
    def trials(self) -> list[FrozenTrial]:
        """Those that count: all but the interrupted ones."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if INTERRUPTED not in trial.user_attrs]

    @property
    def best(self) -> FrozenTrial | None:
        """The best trial so far; None where none has come to its end."""
        done = [trial for trial in self.trials if trial.state == TrialState.COMPLETE]
        return self.study.best_trial if done else None

    def run(self, n_trials: int, train: Train, tell: Callable[[str], None]) -> bool:
        """Try until there are `n_trials` in all.

        Args:
            n_trials: trials of the study, those of earlier sessions included.
            train: trains one.
            tell: is given a line about each trial.

        Returns:
            Whether it was not interrupted.
        """
        while len(self.trials) < n_trials:
            # Told anew each time, so that a study that is gone on with does not begin with the same guesses again.
            self.study.sampler = optuna.samplers.TPESampler(seed=len(self.study.get_trials(deepcopy=False)))
            trial = self.study.ask(self.space.varied)
            overrides = self.space.overrides(trial.params)
            varied = " ".join(overrides[len(self.space.fixed) :])
            trained = Trained(interrupted=True)
            try:
                trained = train(overrides, self.directory / str(trial.number), trial)
            finally:
                # Also on the way out of what nobody foresaw.
                self._tell(trial, trained)
            if trained.interrupted:
                return False
            tell(f"trial {trial.number} {outcome_of(trained)}  {varied}")
        return True

    def _tell(self, trial: Trial, trained: Trained) -> None:
        if trained.interrupted:
            self._note_interrupted(trial)
        if trained.error:
            trial.set_user_attr("error", trained.error)
        if trained.pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif trained.value is None:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            self.study.tell(trial, trained.value)

    def counted(self) -> str:
        """How many trials ended how, in words."""
        names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
        found = Counter(names.get(trial.state, "running") for trial in self.trials)
        return ", ".join(f"{n} {name}" for name, n in found.items()) or "none"


def outcome_of(trained: Trained) -> str:
    """How a trial ended, in a few words."""
    if trained.error:
        return f"failed: {trained.error}"
    return f"{'pruned' if trained.pruned else 'complete'}: {trained.value:.4g}"


def described(distribution: BaseDistribution) -> Any:
    """A distribution as plain values, to be compared with that of an earlier session."""
    return json.loads(distribution_to_json(distribution))
