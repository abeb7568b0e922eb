"""A resumed run: the settings that it had, and those that the command gives now."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from cifargan.errors import UserError
from cifargan.resume import merge, overrides_of, with_resume


def keep(directory: Path, *overrides: str, folder: str = ".hydra") -> None:
    """Leave what a run leaves of its overrides."""
    (directory / folder).mkdir(parents=True)
    (directory / "provenance.json").write_text("{}")
    OmegaConf.save(OmegaConf.create(list(overrides)), directory / folder / "overrides.yaml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nothing_to_resume() -> None:
    assert with_resume(["a=1"], sweep=True) == ["a=1"]
    for nothing in ("resume=", "resume=null", "resume=''", "resume=x resume=null"):
        assert with_resume(["a=1", *nothing.split()], sweep=False) == ["a=1"]


def test_resume_replays_and_what_is_given_now_wins(here: Path) -> None:
    keep(here / "it's a run", "model=dcgan", "+trainer.x=1", "trainer.steps=5", "~data.flip", "name=a=b")
    given = ["trainer.steps=9", "++trainer.x=2", "resume=it's a run", "seed=1"]
    assert with_resume(given, sweep=False) == [
        *("model=dcgan", "~data.flip", "name=a=b", "trainer.steps=9", "++trainer.x=2", "seed=1"),
        *(r"resume='it\'s a run'", r"hydra.run.dir='it\'s a run'"),
    ]
    assert with_resume(["+resume='it's a run'"], sweep=False)[-2:] == [
        r"resume='it\'s a run'",
        r"hydra.run.dir='it\'s a run'",
    ]


def test_resume_looks_below_the_given_root(here: Path) -> None:
    keep(here / "mine" / "dcgan" / "x", "model=dcgan")
    replayed = ["model=dcgan", "output_root=mine", "resume='mine/dcgan/x'", "hydra.run.dir='mine/dcgan/x'"]
    for name in ("latest", "dcgan/x"):
        assert with_resume(["output_root=mine", f"resume={name}"], sweep=False) == replayed


def test_latest_is_the_newest_run_of_the_same_recipe_or_a_new_one(here: Path) -> None:
    assert with_resume(["resume=latest", "model=dcgan"], sweep=False) == ["model=dcgan"]
    assert not list(here.iterdir())
    for number, overrides in enumerate((["model=dcgan", "seed=1"], ["model=biggan"], ["model=dcgan"])):
        keep(here / "outputs" / str(number), *overrides)
        (here / "outputs" / str(number) / "provenance.json").write_text(f'{{"sessions": [{{"started": "{number}"}}]}}')

    def found(*given: str) -> str:
        return with_resume(["resume=latest", *given], sweep=False)[-1]

    assert found() == found("model=dcgan") == found("model=dcgan", "seed=0") == "hydra.run.dir='outputs/2'"
    assert found("model=biggan", "trainer.steps=9") == "hydra.run.dir='outputs/1'"
    assert found("model=dcgan", "seed=1") == "hydra.run.dir='outputs/0'"
    with pytest.raises(
        UserError, match=r"no run under outputs was started with loss=bce, and the newest is outputs/2:"
    ):
        found("loss=bce")
    assert found("hydra.run.dir=outputs/1") == "hydra.run.dir='outputs/1'"
    assert with_resume(["resume=latest", "hydra.run.dir=new"], sweep=False) == ["hydra.run.dir=new"]


def test_a_start_that_was_killed_at_once_replays_nothing(here: Path) -> None:
    keep(here / "run", "seed=3")
    (here / "run" / ".hydra_1").mkdir()
    assert overrides_of(here / "run") == ["seed=3"]


def test_the_last_start_decides_what_is_replayed(here: Path) -> None:
    keep(here / "run", "seed=0")
    for number in range(1, 12):
        keep(here / "run", f"seed={number}", folder=f".hydra_{number}")
    assert overrides_of(here / "run") == ["seed=11"]


def test_overrides_are_replayed_word_for_word(here: Path) -> None:
    words = ["name=${model.generator.name}", "data.classes=[cat,dog]", "trainer.steps=5", "optimizer.generator.lr=1e-4"]
    keep(here / "run", *words)
    assert overrides_of(here / "run") == words


def test_a_run_without_its_overrides(here: Path) -> None:
    (here / "run").mkdir()
    for _ in range(2):
        with pytest.raises(UserError, match=r"^run has no \.hydra/overrides\.yaml, so its settings are not known"):
            overrides_of(Path("run"))
        (here / "run" / ".hydra").mkdir(exist_ok=True)


@pytest.mark.parametrize(
    "override",
    [
        "+hydra.callbacks.x._target_=os.system",
        "hydra/launcher=other",
        "hydra.launcher._target_=os.system",
        "+experiment@hydra=x",
        "++hydra={callbacks:{x:{_target_:os.system}}}",
        "~hydra/job_logging",
        "hydra.run.dir=/tmp/x",
        "optimizer@hydra.job=adam",
    ],
)
def test_settings_of_hydra_are_not_replayed(override: str, here: Path) -> None:
    keep(here / "run", "model=dcgan", override)
    with pytest.raises(UserError, match="Hydra's own settings are not replayed"):
        with_resume(["resume=run"], sweep=False)


@pytest.mark.parametrize(
    ("then", "today", "asked", "result", "told"),
    [
        (1, 1, 1, 1, []),
        (1, 2, 2, 1, ["x=1 (2 today)"]),  # a default has changed
        (1, 1, 3, 3, []),  # the command line has the last word
        (1, 2, 3, 3, []),
        ({"a": 1}, {"a": 1, "b": 2}, {"a": 1, "b": 2}, {"a": 1, "b": 2}, []),  # a setting is new
        ({"a": 1, "b": 2}, {"a": 1}, {"a": 1}, {"a": 1}, []),  # another is gone
        ({"a": 1}, {"a": 2}, {"a": 2, "b": 3}, {"a": 1, "b": 3}, ["x.a=1 (2 today)"]),
        ({"a": None}, {"a": [1, 2]}, {"a": [1, 2]}, {"a": None}, ["x.a=null ([1, 2] today)"]),
        ({"a": {"b": 1}}, {"a": 2}, {"a": 2}, {"a": {"b": 1}}, ["x.a={'b': 1} (2 today)"]),
        (
            {"name": "none"},
            {"name": "fid", "every": 5},
            {"name": "fid", "every": 5},
            {"name": "none"},
            ["x.name=none (fid today)"],
        ),
        (
            {"name": "adam", "lr": 1},
            {"name": "adam", "lr": 2},
            {"name": "rmsprop", "lr": 2},
            {"name": "rmsprop", "lr": 2},
            [],
        ),
    ],
)
def test_a_setting_is_the_runs_own_unless_it_is_given_now(
    then: Any, today: Any, asked: Any, result: Any, told: list[str]
) -> None:
    changes: list[str] = []
    assert merge(then, today, asked, changes, "x") == result
    assert changes == told


def test_what_belongs_to_the_machine_is_todays() -> None:
    then, today = {"device": "cuda:3", "seed": 1}, {"device": "auto", "seed": 0}
    assert merge(then, today, today, []) == {"device": "auto", "seed": 1}


def test_a_run_does_not_change_because_its_configs_have(
    command: Callable[..., CompletedProcess[str]], quick: tuple[str, ...], tmp_path: Path
) -> None:
    mine = tmp_path / "mine" / "experiment" / "own.yaml"
    mine.parent.mkdir(parents=True)
    text = (
        "# @package _global_\noptimizer:\n  generator:\n    lr: {}\n  discriminator:\n    lr: {}\n"
        "augment:\n  name: {}\n"
    )
    mine.write_text(text.format("1e-4", "2e-4", "diffaugment"))
    own = ("--config-dir", str(tmp_path / "mine"))
    started = command("train", *own, *quick, "experiment=own", "hydra.run.dir=run")
    assert started.returncode == 0, started.stderr
    mine.write_text(text.format("5e-4", "6e-4", "none"))
    went_on = command("train", *own, "resume=run", "trainer.steps=4", "optimizer.discriminator.lr=3e-4")
    assert went_on.returncode == 0, went_on.stderr
    (line,) = [line for line in went_on.stderr.splitlines() if "the run keeps its settings" in line]
    assert "optimizer.generator.lr=0.0001 (0.0005 today)" in line
    assert "augment.name=diffaugment (none today)" in line
    assert "discriminator" not in line
    config = yaml.safe_load((tmp_path / "run" / ".hydra_1" / "config.yaml").read_text())
    assert config["augment"]["name"] == "diffaugment"
    assert [config["optimizer"][player]["lr"] for player in ("generator", "discriminator")] == [1e-4, 3e-4]
    assert config["trainer"]["steps"] == 4


def test_a_run_whose_configuration_is_damaged(command: Callable[..., CompletedProcess[str]], run: Path) -> None:
    (run / ".hydra" / "config.yaml").write_text("seed: [")
    refused = command("train", f"resume={run}", "trainer.steps=4")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "config.yaml holds no configuration: it is damaged, or not of cifargan" in refused.stderr
