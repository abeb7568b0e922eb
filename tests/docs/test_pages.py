"""What the documentation names exists: linked files, extras, settings."""

import re
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cifargan.config import GROUPS, parse
from cifargan.config_files import groups
from cifargan.errors import UserError
from cifargan.settings import Settings

ROOT = Path(__file__).parents[2]
STARTS = {*GROUPS, *groups(), *Settings.__dataclass_fields__}
# A setting may need one choice of its group: it must compose with at least one of these.
SURROUNDINGS = (
    (),
    ("experiment=biggan_lecam_diffaug", "data=folder", "data.root=x"),
    ("evaluator=inception", "model=sagan", "loss=wasserstein"),
    ("evaluator=dinov2", "model=cdcgan_concat", "regularizer=[lecam,cr]"),
    ("evaluator=efficientnet_lite0", "model=reacgan", "regularizer=cr"),
    ("init=RUN", "data=digits", "augment=diffaugment"),
)
MADE_ELSEWHERE = {"model=finetuned", "loss=finetuned"}  # by init=
PLACEHOLDER = re.compile(r"[A-Z][A-Z_.]*|\.\.\.|")


def spans_of(text: str) -> list[str]:
    """The inline code of a page."""
    prose = re.sub(r"(?ms)^\s*```.*?^\s*```", "", text)
    return [match[1] for match in re.finditer(r"(?<!`)`([^`\n]+)`(?!`)", prose)]


def settings_of(text: str) -> list[str]:
    """The settings in its inline code; without those whose value is a placeholder."""
    words = [word.strip("'\"") for span in spans_of(text) for word in span.split()]
    found = [re.fullmatch(r"([a-z_]+)((?:\.[a-z_]+)*)=(.*)", word) for word in words]
    ours = [match for match in found if match and match[1] in STARTS and not PLACEHOLDER.fullmatch(match[3])]
    # What has brackets is an interval to search, or Python.
    plain = [match[0] for match in ours if not re.search(r"[()]", match[3]) and match[1] != "resume"]
    return [setting for setting in dict.fromkeys(plain) if setting not in MADE_ELSEWHERE]


def test_every_link_leads_to_a_file(page: Path) -> None:
    text = re.sub(r"(?ms)^\s*```.*?^\s*```", "", page.read_text(encoding="utf-8"))
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    near = [link for link in links if link and not re.match(r"[a-z]+:", link)]
    assert [link for link in near if not (page.parent / link).exists()] == []


def test_every_extra_exists(page: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = re.findall(r"pip install (?:-e )?['\"]?[\w.]+\[([\w,]+)\]", page.read_text(encoding="utf-8"))
    assert {extra for one in named for extra in one.split(",")} <= {*extras}


@pytest.mark.slow
def test_every_setting_in_the_prose_composes(
    page: Path,
    composed: Callable[..., DictConfig],
    named_blocks: Callable[[Path], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cifargan.config.select_device", lambda name: name)  # this machine lacks some
    own = {Path(file).stem for file in named_blocks(page)}  # which the page adds to what is there
    wrong = [
        error
        for setting in settings_of(page.read_text(encoding="utf-8"))
        if setting.partition("=")[2].rstrip(":") not in own and (error := refusal(setting, composed))
    ]
    assert wrong == []


@cache
def refusal(setting: str, composed: Callable[..., DictConfig]) -> str:
    """Why a setting goes with none of the surroundings; empty if it goes with one. A sweep is each of its values."""
    key, _, value = setting.partition("=")
    values = [value] if re.match(r"[\[{]", value) else value.split(",")
    for one in values:
        said = []
        for around in SURROUNDINGS:
            try:
                parse(composed(*(o for o in around if not o.startswith(f"{key}=")), f"{key}={one}"))
            except (UserError, HydraException, OmegaConfBaseException) as error:
                said.append(str(error))
            else:
                break
        else:
            return f"{setting}: {said}"
    return ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["`trainer.stepps=5`", "`loss=hing`", "`cifargan train data.image_size=many`", "`trainer.speed=fast`"]
)
def test_a_wrong_setting_is_found(text: str, composed: Callable[..., DictConfig]) -> None:
    (setting,) = settings_of(f"Say {text}, or `seed=N`, or `cifargan`.\n```\nseed=x\n```\n")
    assert refusal(setting, composed)
