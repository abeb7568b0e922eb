"""`cifargan ls`, `cat`, `cp`."""

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from cifargan.config_files import first_comment, groups, known_keys, options
from cifargan.schema import conf_dir

Command = Callable[..., CompletedProcess[str]]


def test_ls_names_every_config_on_a_line_of_its_own(command: Command) -> None:
    ran = command("ls")
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    for group in groups():
        at = lines.index(f"{group}=")
        assert [line.split()[0] for line in lines[at + 1 : at + 1 + len(options(group))]] == options(group)


@pytest.mark.parametrize("name", ["experiment", "experiments", "experiment="])
def test_ls_of_a_group(name: str, command: Command) -> None:
    ran = command("ls", name)
    assert ran.stdout.startswith("experiment=\n  acbiggan ")
    assert "model=" not in ran.stdout.splitlines()


def test_a_first_sentence_ends_where_a_capital_follows(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    for package in ("_global_", "regularizer.cr"):
        file.write_text(f"# @package {package}\n# As X et al. 2016\n# did it (v. 2). More.\nname: a # no\n")
        assert first_comment(file) == "As X et al. 2016 did it (v. 2)."
    file.write_text("name: a\n# later\n")
    assert first_comment(file) == ""


def test_known_keys_follow_the_package_of_their_file() -> None:
    keys = {*known_keys()}
    assert {"seed", "trainer.steps", "regularizer.lecam.weight", "loss.clip", "model.generator.latent_dim"} <= keys
    assert "regularizer.weight" not in keys
    assert not {key for key in keys if key.startswith(("experiment", "train."))}


def test_cat_shows_the_file(command: Command) -> None:
    shown = command("cat", "experiment/biggan", "loss=hinge").stdout
    assert shown == "".join((conf_dir() / f"{name}.yaml").read_text() for name in ("experiment/biggan", "loss/hinge"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("ls", "experimnts"), "did you mean experiment?"),
        (("ls", "xyz"), "choose from augment, data"),
        (("cat", "experiment/bigan"), "did you mean experiment/biggan"),
        (("cat", "biggan"), "did you mean experiment/biggan or model/biggan?"),
        (("cat", "../pyproject"), "no such config"),
        (("cat",), "cifargan cat --help"),
        (("cp", "loss/hinge", "hinge.yaml"), "a shipped config has that name"),
        (("cp", "loss/hinge", "my loss.yaml"), "letters, digits"),
    ],
)
def test_what_goes_wrong(arguments: tuple[str, ...], text: str, command: Command, files: Callable[[], object]) -> None:
    ran = command(*arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert text in ran.stderr
    assert files() == {}


def test_a_copy_is_what_it_says_and_never_replaces_another(command: Command, tmp_path: Path) -> None:
    ran = command("cp", "experiment/quickstart", "my.yaml")
    assert ran.stdout == "experiment/my.yaml\nuse it with: cifargan train --config-dir . experiment=my\n"
    copy = tmp_path / "experiment" / "my.yaml"
    assert copy.read_text() == (conf_dir() / "experiment" / "quickstart.yaml").read_text()
    copy.write_text("mine")
    assert "--force" in command("cp", "experiment/quickstart", "my.yaml").stderr
    assert copy.read_text() == "mine"
    assert command("cp", "experiment/quickstart", "my.yaml", "--force").returncode == 0
    assert command("cp", "model/dcgan", "conf/model/wide.yaml").stdout.endswith("--config-dir conf model=wide\n")
    assert command("cp", "loss/hinge", "conf").stdout.startswith("conf/loss/my_hinge.yaml\n")


def test_a_copy_that_was_edited_is_trained_with(command: Command, tmp_path: Path, quick: tuple[str, ...]) -> None:
    command("cp", "loss/hinge", "my.yaml")
    copy = tmp_path / "loss" / "my.yaml"
    copy.write_text(copy.read_text().replace("label_smoothing: 0.0", "label_smoothing: 0.25"))
    assert "0.25" in copy.read_text()
    ran = command("train", "--config-dir", ".", "loss=my", *quick, "hydra.run.dir=run")
    assert ran.returncode == 0, ran.stderr
    assert "label_smoothing: 0.25" in (tmp_path / "run" / ".hydra" / "config.yaml").read_text()
