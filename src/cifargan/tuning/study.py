"""A study: trials asked of Optuna and reported to it, kept in a storage from which a later search continues."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import optuna
from optuna.distributions import distribution_to_json
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial, Trial, TrialState

from cifargan.errors import UserError
from cifargan.explain import explain
from cifargan.registry import METRICS, metric_of
from cifargan.runs.directory import RunDirectory
from cifargan.runs.lock import is_locked
from cifargan.tuning.space import Space

STARTUP_TRIALS = 5  # that the median pruner does not prune
INTERRUPTED = "interrupted"  # marks a trial that ended for another reason than its settings; it does not count

# Trains with some overrides in a folder of its own, reports each score to the trial, and returns the best.
Train = Callable[[list[str], Path, Trial], float]


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
    """The pruner `median`, `hyperband` or `none`, for trainings of `steps` that are scored `every` so many."""
    if name == "hyperband":
        return HyperbandPruner(min_resource=min(every, steps), max_resource=steps)
    return MedianPruner(n_startup_trials=STARTUP_TRIALS) if name == "median" else NopPruner()


class Study:
    """The trials of one search.

    Args:
        name: of the study, in its storage.
        storage: an Optuna storage URL.
        directory: of the runs, a numbered folder for each trial.
        space: what is searched.
        objective: the key of a score; None: the score that decides the best checkpoint.
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
        self.directory, self.space = directory, space
        try:
            self.study = optuna.create_study(
                study_name=name, storage=storage, direction=direction, pruner=pruner, load_if_exists=True
            )
        except Exception as error:  # each kind of storage raises its own
            raise UserError(f"storage={storage}: cannot be used ({str(error).splitlines()[0]})") from error
        varied = {key: json.loads(distribution_to_json(one)) for key, one in space.varied.items()}
        about = {"fixed": sorted(space.fixed), "varied": varied, "objective": objective}
        known = self.study.user_attrs.get("about")
        if known is None and RunDirectory(directory / "0").holds_a_run():
            raise UserError(f"{directory} holds trials of another study: choose another study=, or give its storage=")
        if known is not None and known != about:
            different = ", ".join(key for key in about if known.get(key) != about[key])
            raise UserError(f"study={name} exists and searches something else ({different}): choose another name")
        self.study.set_user_attr("about", about)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if is_locked(directory / str(trial.number)) is not True:  # its process has died
                self._interrupt(trial)

    @property
    def trials(self) -> list[FrozenTrial]:
        """All trials but the interrupted ones."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if INTERRUPTED not in trial.user_attrs]

    @property
    def best(self) -> FrozenTrial | None:
        """The best finished trial; None where there is none."""
        return self.study.best_trial if any(trial.state == TrialState.COMPLETE for trial in self.trials) else None

    def run(self, n_trials: int, train: Train, tell: Callable[[str], None]) -> None:
        """Run trials until there are `n_trials`, those of earlier searches included. A failed trial counts.

        Args:
            n_trials: how many.
            train: trains one; raises `optuna.TrialPruned` where the pruner has stopped it.
            tell: gets a line about each trial.

        Raises:
            BaseException: what interrupted a trial: it has a `signal`, or is no `Exception`.
        """
        while len(self.trials) < n_trials:
            # A resumed study must not repeat the guesses of its first trials.
            self.study.sampler = optuna.samplers.TPESampler(seed=len(self.study.get_trials(deepcopy=False)))
            trial = self.study.ask(self.space.varied)
            overrides = self.space.overrides(trial.params)
            try:
                value = train(overrides, self.directory / str(trial.number), trial)
                self.study.tell(trial, value)
                ended = f"complete: {value:.4g}"
            except optuna.TrialPruned:
                self.study.tell(trial, state=TrialState.PRUNED)
                ended = "pruned"
            except BaseException as error:
                if not isinstance(error, Exception) or hasattr(error, "signal"):
                    self._interrupt(trial)
                    raise
                reason = explain(error) or f"a bug in cifargan: {error!r}"
                trial.set_user_attr("error", reason)
                self.study.tell(trial, state=TrialState.FAIL)
                ended = f"failed: {reason}"
            tell(f"trial {trial.number} {ended}  {' '.join(overrides[len(self.space.fixed) :])}")

    def _interrupt(self, trial: FrozenTrial | Trial) -> None:
        self.study._storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
        self.study.tell(trial.number, state=TrialState.FAIL)

    def counted(self) -> str:
        """How many trials ended how, in words."""
        names = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
        found = Counter(names.get(trial.state, "running") for trial in self.trials)
        return ", ".join(f"{n} {name}" for name, n in found.items()) or "none"
