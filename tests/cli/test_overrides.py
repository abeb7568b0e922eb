"""The command line of `train`, before Hydra sees it."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cifargan.cli.overrides import key_of, overrides_of, reject_null_groups, split_flags, with_resume
from cifargan.errors import UserError


def keep(directory: Path, *overrides: str, folder: str = ".hydra") -> None:
    """Leave what a run leaves of its overrides."""
    (directory / folder).mkdir(parents=True)
    (directory / "provenance.json").write_text("{}")
    OmegaConf.save(OmegaConf.create(list(overrides)), directory / folder / "overrides.yaml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "flags", "overrides"),
    [
        ("a=1 b=2", "", "a=1 b=2"),
        ("a=1 -m b=1,2", "-m", "a=1 b=1,2"),
        ("a=1 --multirun", "--multirun", "a=1"),
        ("a=1 --cfg job b=2", "--cfg job", "a=1 b=2"),
        ("a=1 --cfg=job --resolve", "--cfg job --resolve", "a=1"),
        ("a=1 -c hydra", "-c hydra", "a=1"),
        ("--package trainer -c job", "--package trainer -c job", ""),
        ("a=1 --info b=2", "--info=all", "a=1 b=2"),
        ("a=1 --info=defaults", "--info=defaults", "a=1"),
        ("a=1 --config-dir mine ~b +c=-3", "--config-dir mine", "a=1 ~b +c=-3"),
    ],
)
def test_flags_go_before_overrides(line: str, flags: str, overrides: str) -> None:
    assert split_flags(line.split()) == (flags.split(), overrides.split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a=1 --cgf job", "--cgf: no such option; did you mean --cfg"),
        ("--batch-size=5", "--batch-size: no such option; "),
        ("--cfg", "--cfg : choose from job, hydra, all"),
        ("--cfg all -m", "-m sweeps, --cfg and --info only show"),
        ("--info -m", "-m sweeps, --cfg and --info only show"),
        ("--config-dir", "--config-dir : needs a value"),
    ],
)
def test_flags_that_make_no_sense(line: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        split_flags(line.split())
    assert str(caught.value).startswith(message)


def test_key_of() -> None:
    assert [key_of(text) for text in ("a.b=1", "+a.b=1=2", "++a=x", "~a", "~a=1")] == ["a.b", "a.b", "a", "a", "a"]


def test_a_group_set_to_nothing() -> None:
    reject_null_groups(["trainer.lr_decay_from=null", "model=dcgan", "+x=null"])
    with pytest.raises(UserError, match=r"^loss=null: leave it out, or choose from bce, hinge, hinge_smooth, wasser"):
        reject_null_groups(["model=dcgan", "loss=null"])


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
    ],
)
def test_a_run_that_one_was_sent_cannot_bring_hydra_settings(override: str, here: Path) -> None:
    keep(here / "run", "model=dcgan", override)
    with pytest.raises(UserError, match="Hydra's own settings are not replayed"):
        with_resume(["resume=run"], sweep=False)
