"""The package as others meet it: the installed command, the wheel, what an import costs."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cifargan
from cifargan.schema import conf_dir

PROJECT = Path(cifargan.__file__).parents[2]


def python(*arguments: str, **options: str | Path) -> subprocess.CompletedProcess[str]:
    """Run this interpreter; `cwd` and `path` (for PYTHONPATH) as options."""
    environment = {**os.environ, "PYTHONPATH": str(options.get("path", ""))}
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        capture_output=True,
        text=True,
        cwd=options.get("cwd"),
        env=environment,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"], ["help"]])
def test_help_and_version_do_not_import_torch(arguments: list[str]) -> None:
    program = f"""
import sys
from cifargan.cli import main
code = main({arguments!r})
assert not {{"torch", "numpy", "sklearn"}} & sys.modules.keys(), "slow imports"
sys.exit(code)
"""
    ran = python("-c", program)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"cifargan {cifargan.__version__}")


def test_python_dash_m_and_the_installed_command_are_the_same() -> None:
    as_module = python("-m", "cifargan", "--version")
    assert (as_module.returncode, as_module.stdout) == (0, f"cifargan {cifargan.__version__}\n")
    script = Path(sys.executable).with_name("cifargan")
    as_command = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert as_command.stdout == as_module.stdout


def test_exit_codes_reach_the_shell() -> None:
    ran = python("-m", "cifargan", "trian")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "error: cifargan trian: no such command; did you mean train?\n"


@pytest.mark.slow
def test_load_generator_is_imported_when_it_is_asked_for() -> None:
    program = """
import sys
import cifargan
assert "torch" not in sys.modules
from cifargan.loading import load_generator
assert cifargan.load_generator is load_generator
"""
    assert python("-c", program).stderr == ""
    with pytest.raises(AttributeError, match="has no attribute 'load_generators'"):
        cifargan.load_generators  # noqa: B018


def test_the_version_is_the_packages() -> None:
    program = "import cifargan, importlib.metadata as m; print(m.version('cifargan') == cifargan.__version__)"
    assert python("-c", program).stdout == "True\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    built = python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(PROJECT))
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_carries_the_configuration_and_nothing_foreign(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for file in conf_dir().rglob("*.yaml"):
            assert archive.read(f"cifargan/conf/{file.relative_to(conf_dir()).as_posix()}") == file.read_bytes()
    files = [path for kind in ("*.py", "*.j2") for path in (PROJECT / "src").rglob(kind)]
    assert {path.relative_to(PROJECT / "src").as_posix() for path in files} <= names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"cifargan", f"cifargan-{cifargan.__version__}.dist-info"}
    assert {Path(name).suffix for name in names if name.startswith("cifargan/")} <= {".py", ".yaml", ".j2", ".typed"}


@pytest.mark.slow
def test_the_installed_wheel_trains_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    installed = python("-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    assert installed.returncode == 0, installed.stderr
    where = python("-c", "import cifargan; print(cifargan.__file__)", path=site, cwd=work)
    assert Path(where.stdout.strip()) == site / "cifargan" / "__init__.py"

    arguments = ["trainer.steps=1", "trainer.batch_size=4", "device=cpu", "hydra.run.dir=run"]
    trained = python("-m", "cifargan", "train", "experiment=quickstart", *arguments, path=site, cwd=work)
    assert trained.returncode == 0, trained.stderr
    assert json.loads((work / "run" / "status.json").read_text())["status"] == "finished"
    sampled = python("-m", "cifargan", "sample", "run", "--per-class", "1", "--out", "out", path=site, cwd=work)
    assert sampled.returncode == 0, sampled.stderr
    assert (work / "out" / "overview.png").is_file()
