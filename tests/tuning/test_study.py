"""A study of trials: run, interrupted, resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner
from optuna.trial import Trial, TrialState

from cifargan.errors import UserError
from cifargan.runs.directory import RunDirectory
from cifargan.training.interruption import InterruptedRunError
from cifargan.tuning.space import space_of
from cifargan.tuning.study import Study, direction_of, pruner_of

Make = Callable[..., Study]


@pytest.fixture
def study(tmp_path: Path) -> Make:
    """A function that opens the study of this test."""

    def make(
        *overrides: str, objective: str | None = None, direction: Any = "minimize", directory: Path = tmp_path
    ) -> Study:
        return Study(
            "test",
            storage=f"sqlite:///{tmp_path / 'study.db'}",
            directory=directory,
            space=space_of(overrides or ("a=interval(0,1)", "b=choice(x,y)", "c=1")),
            objective=objective,
            pruner=NopPruner(),
            direction=direction,
        )

    return make


def value_of(overrides: list[str], directory: Path, trial: Trial) -> float:
    """A score that depends on the settings alone."""
    return float(overrides[1].removeprefix("a=")) + 10 * (overrides[2] == "b=x")


def test_a_study_continues_until_it_has_all_trials(study: Make) -> None:
    lines: list[str] = []
    study().run(6, value_of, lines.append)
    assert len(lines) == 6
    again = study()
    again.run(6, lambda *_: pytest.fail("all trials are there"), lines.append)
    again.run(9, value_of, lines.append)
    assert [line.split()[:3] for line in lines[6:]] == [["trial", str(number), "complete:"] for number in (6, 7, 8)]
    assert len({tuple(trial.params.items()) for trial in again.trials}) == 9  # no guess is repeated
    assert again.best is not None
    assert again.best.value == min(trial.value for trial in again.trials if trial.value is not None)
    assert again.best.params["b"] == "y"
    assert again.counted() == "9 complete"


def test_a_failed_trial_counts_and_ends_nothing(study: Make) -> None:
    def sometimes(overrides: list[str], directory: Path, trial: Trial) -> float:
        trial.report(5.0, 10)
        errors = {1: UserError("diverged"), 2: optuna.TrialPruned(), 3: KeyError("x")}
        if trial.number in errors:
            raise errors[trial.number]
        return float(trial.number)

    lines: list[str] = []
    found = study()
    found.run(5, sometimes, lines.append)
    assert [line.split("  ")[0] for line in lines] == [
        *("trial 0 complete: 0", "trial 1 failed: diverged", "trial 2 pruned"),
        *("trial 3 failed: a bug in cifargan: KeyError('x')", "trial 4 complete: 4"),
    ]
    assert found.counted() == "2 complete, 2 failed, 1 pruned"
    assert found.trials[1].user_attrs["error"] == "diverged"
    assert found.trials[2].value == 5.0


@pytest.mark.parametrize("error", [InterruptedRunError(2, "stopped"), KeyboardInterrupt()])
def test_an_interrupted_trial_is_failed_and_does_not_count(study: Make, error: BaseException) -> None:
    def interrupted(overrides: list[str], directory: Path, trial: Trial) -> float:
        raise error

    with pytest.raises(type(error)):
        study().run(3, interrupted, print)
    found = study()
    assert [trial.state for trial in found.study.trials] == [TrialState.FAIL]
    found.run(1, value_of, print)
    assert [trial.number for trial in found.trials] == [1]


def test_a_trial_whose_process_died_is_failed_and_one_that_runs_is_not(study: Make, tmp_path: Path) -> None:
    found = study()
    found.study.ask(found.space.varied)
    found.study.ask(found.space.varied)
    (tmp_path / "1").mkdir()
    with RunDirectory(tmp_path / "1").lock():
        again = study()
    assert [trial.state for trial in again.study.trials] == [TrialState.FAIL, TrialState.RUNNING]
    assert again.counted() == "1 running"


@pytest.mark.parametrize(
    ("overrides", "objective", "what"),
    [
        (("a=interval(0,2)", "b=choice(x,y)", "c=1"), None, "varied"),
        (("a=interval(0,1)", "b=choice(x,y)", "c=2"), None, "fixed"),
        (("a=interval(0,1)", "b=choice(x,y)", "c=1"), "kid_n9_train", "objective"),
    ],
)
def test_a_study_searches_one_thing(overrides: tuple[str, ...], objective: str | None, what: str, study: Make) -> None:
    study()
    study("c=1", "a=interval(0,1)", "b=choice(x,y)")  # the same in another order
    with pytest.raises(UserError, match=rf"study=test exists and searches something else \({what}\)"):
        study(*overrides, objective=objective)


def test_folders_of_another_study_are_left_alone(study: Make, tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "provenance.json").write_text("{}")
    with pytest.raises(UserError, match="holds trials of another study"):
        study()


def test_a_storage_that_cannot_be_used(tmp_path: Path) -> None:
    space = space_of(["a=interval(0,1)"])
    with pytest.raises(UserError, match=r"^storage=nosql://x: cannot be used \("):
        Study("s", storage="nosql://x", directory=tmp_path, space=space, objective=None, pruner=NopPruner())


@pytest.mark.parametrize(
    ("objective", "direction"),
    [
        ("fid_n10000_train", "minimize"),
        ("fd_lite0_64_n9_test", "minimize"),
        ("kd_dinov2_n9_test", "minimize"),
        ("is_n50000", "maximize"),
        ("recall_lite0_64_n9_test", "maximize"),
        ("class_hit_rate_lite0_64_n9_test/cat", "maximize"),
    ],
)
def test_the_metric_of_a_score_says_what_is_better(objective: str, direction: str, study: Make) -> None:
    assert direction_of(objective) == direction
    assert (
        study(objective=objective, direction=direction).study.direction
        == optuna.study.StudyDirection[direction.upper()]
    )


def test_a_score_nobody_knows() -> None:
    with pytest.raises(UserError, match="objective=isotope: no score of that name"):
        direction_of("isotope")


def test_pruners() -> None:
    assert isinstance(pruner_of("median", every=5, steps=50), MedianPruner)
    assert isinstance(pruner_of("none", every=5, steps=50), NopPruner)
    assert isinstance(pruner_of("hyperband", every=5, steps=50), HyperbandPruner)
