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
from cifargan.cli.tune import FINAL, train_trial, value_of
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
def test_a_search_from_beginning_to_end(command: Command, scored: tuple[str, ...], tmp_path: Path) -> None:
    own = tmp_path / "mine" / "experiment" / "own.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\ntrainer:\n  max_rollbacks: 7\n")
    search = (
        "--config-dir",
        "mine",
        "experiment=own",
        *scored,
        RATE,
        "augment=choice(none,diffaugment)",
        "study=first",
    )
    ran = command("tune", *search, "n_trials=1")
    assert ran.returncode == 0, ran.stderr
    ran = command("tune", *search, "n_trials=3")
    assert ran.returncode == 0, ran.stderr
    folder = tmp_path / "outputs" / "tune" / "first"
    assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "2", "study.db"]
    assert "max_rollbacks: 7" in (folder / "0" / ".hydra" / "config.yaml").read_text()
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
    assert words[:3] == ["cifargan", "train", "--config-dir=mine"]
    assert set(words[3:]) | {"evaluator.final_samples=0"} == set(
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
    assert "no trial has finished yet" in ran.stdout
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


def test_a_pruned_trial_ends_at_once(scored: tuple[str, ...], tmp_path: Path) -> None:
    trial = Decided(pruned=True)
    with pytest.raises(optuna.TrialPruned):
        train_trial([*scored, f"{FINAL}=0"], tmp_path / "0", trial, objective=None)  # type: ignore[arg-type]
    assert trial.seen == [1]
    assert "pruned at step 1: other trials were better" in (tmp_path / "0" / "train.log").read_text()


def test_the_value_of_a_trial_is_the_best_that_it_reached(run: Path) -> None:
    record = {"n": 9, "images": 9, "subject": "training", "reference_name": "digits", "reference_split": "train"}
    records = [
        {**record, "metric": metric, "step": step, "value": value, "better": better}
        for step, (fid, recall) in enumerate(((3.0, 0.1), (1.0, 0.5), (2.0, 0.4)))
        for metric, value, better in (("fid", fid, "lower"), ("recall", recall, "higher"))
    ]
    (run / "evaluation.json").write_text(json.dumps({"records": records}))
    assert value_of(run, None) == 1.0
    assert value_of(run, "fid_n9_train") == 1.0
    assert value_of(run, "recall_n9_train") == 0.5
    with pytest.raises(
        UserError, match=r"^objective=recal_n9_train: .* has no such score; did you mean recall_n9_train"
    ):
        value_of(run, "recal_n9_train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["n_trials=0", RATE], "n_trials=0: must be a whole number from 1 on"),
        (["n_trails=4", RATE], "n_trails: no such setting; did you mean n_trials?"),
        (["pruner=meidan", RATE], "pruner=meidan: choose from median, hyperband, none"),
        (["study=../x", RATE], "study=../x: must be a name"),
        (["objective=foo", RATE], "objective=foo: no score of that name; they begin with fid"),
        (["-m", RATE], "-m: does not go with a search"),
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
