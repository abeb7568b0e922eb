"""`cifargan tune`: from the command line to trained trials and back."""

import json
import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import optuna
import pytest
import torch

from cifargan.cli import tune
from cifargan.cli.tune import Trials
from cifargan.errors import UserError
from cifargan.evaluation.records import read_file
from cifargan.training.step import GANStep

Command = Callable[..., CompletedProcess[str]]
RATE = "optimizer.generator.lr=interval(1e-5,1e-3)"


@pytest.fixture
def scored(quick: tuple[str, ...]) -> tuple[str, ...]:
    """The overrides of a quick training that is scored twice."""
    fixed = [override for override in quick if not override.startswith("evaluator=")]
    lite0 = ("evaluator=efficientnet_lite0", "evaluator.resolution=32", "evaluator.samples=4", "evaluator.every=1")
    return (*fixed, *lite0)


@pytest.mark.slow
def test_a_search_over_configs_of_ones_own(command: Command, scored: tuple[str, ...], tmp_path: Path) -> None:
    own = tmp_path / "mine" / "experiment" / "own.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\ntrainer:\n  max_rollbacks: 7\n")
    ran = command("tune", "--config-dir", "mine", "experiment=own", *scored, RATE, "n_trials=1")
    assert ran.returncode == 0, ran.stderr
    assert "max_rollbacks: 7" in (tmp_path / "outputs" / "tune" / "tune" / "0" / ".hydra" / "config.yaml").read_text()
    assert shlex.split(ran.stdout.splitlines()[-1])[:5] == [
        "cifargan",
        "train",
        "--config-dir",
        "mine",
        "experiment=own",
    ]


@pytest.mark.slow
def test_a_search_from_beginning_to_end(command: Command, scored: tuple[str, ...], tmp_path: Path) -> None:
    search = (*scored, RATE, "regularizer=choice(none,lecam)", "study=first")
    ran = command("tune", *search, "n_trials=1")
    assert ran.returncode == 0, ran.stderr
    ran = command("tune", *search, "n_trials=3")
    assert ran.returncode == 0, ran.stderr
    folder = tmp_path / "outputs" / "tune" / "first"
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "2", "study.db"]
    assert [line.split()[:3] for line in ran.stdout.splitlines() if line.startswith("trial")] == [
        ["trial", "1", "complete:"],
        ["trial", "2", "complete:"],
    ]
    study = optuna.load_study(study_name="first", storage=f"sqlite:///{folder / 'study.db'}")
    for trial in study.trials:
        distances = [
            record["value"]
            for record in read_file(folder / str(trial.number) / "evaluation.json")
            if str(record["metric"]).startswith("fd_")
        ]
        assert trial.value == min(distances)  # type: ignore[type-var]
        assert [trial.intermediate_values[step] for step in (1, 2)] == distances  # and no final score
    # What is printed trains what was best.
    *_, last = ran.stdout.splitlines()
    best = folder / str(study.best_trial.number) / ".hydra" / "overrides.yaml"
    words = shlex.split(last)
    assert words[:2] == ["cifargan", "train"]
    assert set(words[2:]) | {"evaluator.final_samples=0"} == set(
        re.findall(r"^- '?(.*?)'?$", best.read_text(), re.MULTILINE)
    )
    assert f"best: {study.best_value:.4g} at trial {study.best_trial.number}" in ran.stdout


def test_ctrl_c_stops_a_search(
    command: Command, scored: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = GANStep.iterate

    def interrupted(gan: GANStep) -> dict[str, torch.Tensor]:
        os.kill(os.getpid(), signal.SIGINT)
        return play(gan)

    monkeypatch.setattr(GANStep, "iterate", interrupted)
    ran = command("tune", *scored, RATE)
    assert ran.returncode == 130
    assert "none of n_trials=20, in " in ran.stdout
    assert "no trial has come to its end yet" in ran.stdout
    folder = tmp_path / "outputs" / "tune" / "tune"
    assert json.loads((folder / "0" / "status.json").read_text())["status"] == "interrupted"
    (trial,) = optuna.load_study(study_name="tune", storage=f"sqlite:///{folder / 'study.db'}").trials
    assert trial.state == optuna.trial.TrialState.FAIL


class Decided(optuna.trial.FixedTrial):
    """A trial that is pruned at its first score, or not."""

    def __init__(self, pruned: bool) -> None:
        super().__init__({})
        self.pruned = pruned
        self.seen: list[int] = []

    def report(self, value: float, step: int) -> None:
        self.seen.append(step)

    def should_prune(self) -> bool:
        return self.pruned


def test_a_pruned_trial_ends_at_once(command: Command, scored: tuple[str, ...], tmp_path: Path) -> None:
    trial = Decided(pruned=True)
    ended = Trials(None, []).train([*scored, "evaluator.final_samples=0"], tmp_path / "0", trial)  # type: ignore[arg-type]
    assert ended.pruned
    assert trial.seen == [1]
    (value,) = (r["value"] for r in read_file(tmp_path / "0" / "evaluation.json") if str(r["metric"]).startswith("fd_"))
    assert ended.value == value
    assert "pruned at step 1: other trials were better by then" in (tmp_path / "0" / "train.log").read_text()


def test_a_failed_trial_says_why(scored: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(gan: GANStep) -> None:
        raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr(GANStep, "iterate", broken)
    ended = Trials(None, []).train([*scored], tmp_path / "0", Decided(pruned=False))  # type: ignore[arg-type]
    assert ended.error == "a bug in cifargan: ZeroDivisionError('nobody foresaw this')"
    assert not ended.interrupted


def test_the_value_of_a_trial_is_the_best_that_it_reached(run: Path) -> None:
    record = {"n": 9, "images": 9, "subject": "training", "reference_name": "digits", "reference_split": "train"}
    records = [
        {**record, "metric": metric, "step": step, "value": value, "better": better}
        for step, (fid, recall) in enumerate(((3.0, 0.1), (1.0, 0.5), (2.0, 0.4)))
        for metric, value, better in (("fid", fid, "lower"), ("recall", recall, "higher"))
    ]
    (run / "evaluation.json").write_text(json.dumps({"records": records}))
    assert Trials(None, []).value_of(run) == 1.0
    assert Trials("fid_n9_train", []).value_of(run) == 1.0
    assert Trials("recall_n9_train", []).value_of(run) == 0.5
    with pytest.raises(
        UserError, match=r"^objective=recal_n9_train: .* has no such score; did you mean recall_n9_train"
    ):
        Trials("recal_n9_train", []).value_of(run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["n_trials=0", RATE], "n_trials=0: must be a whole number from 1 on"),
        (["n_trails=4", RATE], "n_trails: no such setting; did you mean n_trials?"),
        (["pruner=meidan", RATE], "pruner=meidan: choose from median, hyperband, none"),
        (["study=../x", RATE], "study=../x: is a name, and becomes that of a folder"),
        (["objective=foo", RATE], "objective=foo: no score of that name; they begin with fid"),
        (["-m", RATE], "--multirun: does not go with a search"),
        (["--config-dri", "mine", RATE], "--config-dri: no such option; did you mean --config-dir"),
        (["resume=latest", RATE], "resume=latest: does not go with a search"),
        (["hydra.run.dir=x", RATE], "hydra.run.dir=x: does not go with a search"),
        (["seed=1"], "nothing to search"),
        (["evaluator=none", RATE], "evaluator=none gives no scores to search by"),
        (
            ["regularizer=choice(none,lecan)", "evaluator=inception"],
            "regularizer=lecan: no such regularizer; did you mean lecam",
        ),
        (["optimizer.generator.rate=interval(0,1)"], "optimizer.generator.rate: no such setting"),
    ],
)
def test_what_goes_wrong_is_one_line(command: Command, arguments: list[str], message: str, tmp_path: Path) -> None:
    ran = command("tune", "model=dcgan", "data=digits", "device=cpu", *arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"error: {message}")
    assert ran.stderr.count("\n") == 1
    assert [path for path in tmp_path.iterdir() if path.name != ".cache"] == []


def test_optuna_is_an_extra(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "find_spec", lambda name: None)
    ran = command("tune", RATE)
    assert (ran.returncode, ran.stderr) == (2, "error: cifargan tune needs Optuna: pip install 'cifargan[tune]'\n")
