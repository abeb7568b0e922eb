"""The overrides in an untrusted run, which `resume=` replays."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from cifargan.resume import with_resume

Refusal = Callable[..., str]

EVIL = """# @package _global_
hydra:
  callbacks:
    evil:
      _target_: shutil.copyfile
      _args_: ["{source}", "{target}"]
"""


@pytest.fixture
def resume(refusal: Refusal, run: Path) -> Callable[[str], str]:
    """A function that resumes the run with another overrides.yaml, and gives the refusal."""

    def go(text: str) -> str:
        (run / ".hydra" / "overrides.yaml").write_text(text)
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        line = refusal("train", f"resume={run}", "trainer.steps=3")
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        return line

    return go


@pytest.fixture
def own(run: Path) -> str:
    """The overrides of the unchanged run."""
    return (run / ".hydra" / "overrides.yaml").read_text()


def test_an_option_of_hydra_that_unpickles(
    resume: Callable[[str], str], own: str, payload: object, tmp_path: Path
) -> None:
    (tmp_path / "config.pickle").write_bytes(pickle.dumps(payload))
    assert "not a setting" in resume(f"- --experimental-rerun={tmp_path / 'config.pickle'}\n{own}")


@pytest.mark.parametrize("way", ["by its path", "by a folder of configs"])
def test_a_config_from_outside(resume: Callable[[str], str], own: str, tmp_path: Path, canary: Path, way: str) -> None:
    folder = tmp_path / "configs" / "experiment"
    folder.mkdir(parents=True)
    (folder / "evil.yaml").write_text(EVIL.format(source=folder / "evil.yaml", target=canary))
    if way == "by its path":
        line = resume(f"{own}- experiment={'../' * 30}{folder.relative_to('/')}/evil\n")
        assert "a group is chosen by a name" in line
    else:
        assert "not a setting" in resume(f"- --config-dir={folder.parent}\n{own}- experiment=evil\n")


@pytest.mark.parametrize("place", ["model.generator", "loss", "data", "optimizer.generator", "augment"])
def test_an_experiment_that_names_code(refusal: Refusal, tmp_path: Path, canary: Path, place: str) -> None:
    folder = tmp_path / "configs" / "experiment"
    folder.mkdir(parents=True)
    evil = OmegaConf.create({})
    OmegaConf.update(evil, place, {"_target_": "os.system", "_args_": [f"mkdir {canary}"]})
    (folder / "evil.yaml").write_text(f"# @package _global_\n{OmegaConf.to_yaml(evil)}")
    words = ("train", "--config-dir", str(folder.parent), "experiment=evil", "debug=fast", "device=cpu")
    assert f"{place}._target_: no such setting" in refusal(*words).replace("_args_", "_target_")


@pytest.mark.parametrize(
    "line", ["name=${oc.env:CIFARGAN_SECRET}", "name=${hydra:runtime.cwd}", "name=${a${oc.env:X}}"]
)
def test_nothing_is_looked_up_on_this_machine(tmp_path: Path, line: str) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "overrides.yaml").write_text(f"- seed=1\n- {line}\n")
    (tmp_path / "provenance.json").write_text("{}")
    replayed = with_resume([f"resume={tmp_path}"], sweep=False)
    assert replayed[0] == "seed=1"
    assert "${" not in str(replayed)


def _laughs() -> str:
    return "- &a0 [ha]\n" + "".join(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 4)}]\n" for i in range(1, 8))


@pytest.mark.parametrize(
    "text",
    ["- !!python/object/apply:os.mkdir [canary]\n", _laughs(), "{a: b}", "- [a]", "[" * 90_000, "- 5", "\x00", "a: *b"],
    ids=["tag", "billion laughs", "dict", "nested", "deep", "number", "NUL", "no anchor"],
)
def test_files_that_are_no_list_of_overrides(resume: Callable[[str], str], text: str, canary: Path) -> None:
    assert "is damaged or not of cifargan" in resume(text)


def test_messages(resume: Callable[[str], str], own: str) -> None:
    """The rest of the settings of Hydra are refused in tests/test_resume.py; no message holds a control character."""
    assert "Hydra's own settings are not replayed" in resume(f"{own}- +hydra.callbacks.x._target_=os.system\n")
    assert "\\x1b[31m" in resume(OmegaConf.to_yaml(OmegaConf.create(["--\x1b[31mred\nline"])))
