"""The pages of the documentation: their code blocks, their commands, and a folder to run these in."""

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "docs" / "getting_started.md"]
PAGES += sorted({*(ROOT / "docs").rglob("*.md")} - {*PAGES})
SHELL = ("", "bash", "console", "sh")  # after the fence; a block of another kind, such as `text`, is not run
PROGRAMS = ("cifargan", "python", "bash", "pip", "tensorboard", "torchrun")
MANY_JOBS = {"-m", "--multirun", "tune"}  # each composed and checked, which takes a while
FIRST_READ = ("README.md", "docs/getting_started.md")  # their commands are run without the slow tests too
INDENT = " " * 4  # of a block without fences


class Block(NamedTuple):
    """One block of code: what stands behind its fence, the number of its first line, its lines."""

    info: str
    start: int
    lines: list[str]


def blocks_of(text: str) -> Iterator[Block]:
    """The fenced blocks of a page, and what is indented outside of them as blocks without info."""
    open_block: Block | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        fence = re.fullmatch(r"\s*```(.*)", line)
        if open_block is None and fence:
            open_block = Block(fence[1].strip(), number + 1, [])
        elif open_block is None and line.startswith(INDENT):
            yield Block("", number, [line.removeprefix(INDENT)])
        elif open_block is not None and fence:
            yield open_block
            open_block = None
        elif open_block is not None:
            open_block.lines.append(line)
    assert open_block is None, "a fence is not closed"


def commands_of(text: str) -> Iterator[tuple[int, list[str]]]:
    """The commands of a page as words, each with the number of its line.

    Explanations behind two spaces or a `#` are left out, as are settings of the environment and `srun` before a command;
    backslashes join lines, and words such as `$O` are replaced by what their block says above.
    """
    variables: dict[str, list[str]] = {}
    begun: tuple[int, str] | None = None
    for info, start, lines in blocks_of(text):
        if info not in SHELL:
            continue
        for number, line in enumerate(lines, start):
            first, so_far = begun or (number, "")
            bare = re.split(r"\s+#", line.strip().removeprefix("$ "))[0]
            joined = f"{so_far} {bare}".strip()
            if joined.endswith("\\"):
                begun = first, joined.removesuffix("\\").rstrip()
                continue
            begun = None
            if assigned := re.fullmatch(r"([A-Z]+)=(.*)", joined):
                variables[assigned[1]] = "".join(shlex.split(assigned[2])).split()
            elif (command := re.sub(r"^(\w+=\S+ |srun )+", "", joined)).partition(" ")[0] in PROGRAMS:
                try:
                    words = shlex.split(re.split(r"\s{2,}", command)[0])
                except ValueError as error:
                    raise ValueError(f"line {first}: {joined}: {error}: two spaces before what explains it?") from error
                yield first, [part for word in words for part in variables.get(word.removeprefix("$"), [word])]


def is_quick(words: tuple[str, ...], where: str) -> bool:
    """Whether a command is run without the slow tests too."""
    return where.startswith(FIRST_READ) and not MANY_JOBS & {*words}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Call a test for each command, or for each page, that it asks for."""
    if "words" in metafunc.fixturenames:
        seen: dict[tuple[str, ...], str] = {}
        for page in PAGES:
            for number, words in commands_of(page.read_text(encoding="utf-8")):
                seen.setdefault(tuple(words), f"{page.relative_to(ROOT)}:{number}")
        metafunc.parametrize(
            "words",
            [
                pytest.param(list(words), id=where, marks=[] if is_quick(words, where) else [pytest.mark.slow])
                for words, where in seen.items()
            ],
        )
    if "page" in metafunc.fixturenames:
        metafunc.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


@pytest.fixture(scope="session")
def commands() -> Callable[[str], list[list[str]]]:
    """A function that finds the commands in a page's text."""
    return lambda text: [words for _, words in commands_of(text)]


@pytest.fixture(scope="session")
def named_blocks() -> Callable[[Path], dict[str, str]]:
    """A function that finds the files which a page shows in full: ```python my_gan.py."""

    def find(page: Path) -> dict[str, str]:
        blocks = [block for block in blocks_of(page.read_text(encoding="utf-8")) if " " in block.info]
        return {block.info.split()[1]: "\n".join(block.lines) + "\n" for block in blocks}

    return find


@pytest.fixture(scope="session")
def scored_run(invoke: Callable[..., CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two steps with scores and a best checkpoint; not to be changed."""
    folder = tmp_path_factory.mktemp("scored")
    ran = invoke(
        folder,
        *(
            "train",
            "hydra.run.dir=run",
            "device=cpu",
            "trainer.steps=2",
            "trainer.batch_size=4",
            "trainer.sample_every=1",
        ),
        *("data=digits", "data.splits=[test]", "data.image_size=16", "trainer.samples_per_class=1"),
        *("model.generator.latent_dim=8", "model.generator.base_channels=4", "model.discriminator.base_channels=4"),
        *("evaluator=efficientnet_lite0", "evaluator.resolution=32", "evaluator.samples=4", "evaluator.every=2"),
        "evaluator.final_samples=0",
    )
    assert ran.returncode == 0, ran.stderr
    exported = invoke(folder, "export", "run", "--format", "safetensors", "--device", "cpu", "--out", "g.safetensors")
    assert exported.returncode == 0, exported.stderr
    return folder / "run"


@pytest.fixture
def world(scored_run: Path, tmp_path: Path) -> Path:
    """A working folder in which the names that the pages use, RUN for one, are those of real things."""
    folder = tmp_path / "world"
    for run in ("RUN", "outputs/cdcgan/2026-01-01_00-00-00"):
        shutil.copytree(scored_run, folder / run)
    shutil.copy(scored_run.parent / "g.safetensors", folder / "generator.safetensors")
    random = np.random.default_rng(0)
    for images in ("DIR", "IMAGES", "PATH", "my/pictures"):
        for name in ("cat", "dog"):
            (folder / images / name).mkdir(parents=True)
            for i in range(4):
                pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / images / name / f"{i}.png")
    np.savez(folder / "STATS.npz", mu=np.zeros(4), sigma=np.eye(4))
    return folder
