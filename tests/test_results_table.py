"""The README's table of results: written from records alone, and checked."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def score(**changes: Any) -> dict[str, Any]:
    return {
        "metric": "fid",
        "value": 9.876,
        "n": 50_000,
        "images": 50_000,
        "class_name": None,
        "reference_name": "cifar10",
        "reference_split": "train",
        "reference_n": 50_000,
        "reference_fingerprint": "abcdef0123",
        "extractor": "inception",
        "weights_hash": "6726825d00",
        "step": 1000,
        "truncation": None,
        **changes,
    }


def result(**changes: Any) -> dict[str, Any]:
    return {
        "recipe": "biggan",
        "command": "cifargan train experiment=biggan",
        "device": "A|B",
        "steps": 1000,
        "images_seen": 640_000,
        "minutes": 61.7,
        "images_per_s": 172.9,
        "memory_gib": 3.25,
        "scores": [score()],
        **changes,
    }


@pytest.fixture
def project(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, in a project without records."""
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(script, "README", tmp_path / "README.md")
    monkeypatch.setattr(script, "RECORDS", tmp_path / "results")
    script.README.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    return script


def write(project: ModuleType, *records: Any) -> None:
    for i, content in enumerate(records):
        (project.RECORDS / f"{i}.json").write_text(content if isinstance(content, str) else json.dumps(content))


def test_the_readme_matches_the_records(script: ModuleType) -> None:
    assert script.main(["--check"]) == 0


def test_one_row_a_record_and_one_column_a_protocol(project: ModuleType) -> None:
    assert project.main([]) == 0
    assert project.README.read_text() == f"before\n{project.BEGIN}\n\n{project.NOTHING}\n{project.END}\nafter\n"
    more = [score(metric="is", value=8.5, spread=0.1, reference_name=None), score(truncation=0.5, value=1.0)]
    other = result(recipe="sagan_bce", scores=[score(value=2.0, n=10_000, images=10_000)])
    write(
        project,
        result(scores=[score(), *more]),
        result(recipe="dcgan", memory_gib=None, scores=[score(value=7.5)]),
        other,
    )
    assert project.main([]) == 0
    text = project.README.read_text()
    rows = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in text.splitlines() if line.startswith("|")]
    keys = ["`fid_n50000_train` <sup>a</sup>", "`is_n50000` <sup>b</sup>", "`fid_n10000_train` <sup>c</sup>"]
    assert rows[0][6:] == ["memory", *keys]
    work = ["A\\|B", "1,000", "640,000", "62", "173"]
    assert rows[2:] == [
        ["[`dcgan`](docs/results/1.json)", *work, "-", "7.50", "-", "-"],
        ["[`biggan`](docs/results/0.json)", *work, "3.2 GiB", "9.88", "8.50 ± 0.10", "-"],
        ["[`sagan_bce`](docs/results/2.json)", *work, "3.2 GiB", "-", "-", "2.00"],
    ]
    assert "- <sup>c</sup> fid: 10,000 images, against cifar10 train (50,000, abcdef01), inception 6726825d" in text
    assert project.main(["--check"]) == 0
    project.README.write_text(changed := text.replace("9.88", "9.78"))
    assert project.main(["--check"]) == 1
    assert project.README.read_text() == changed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        (result(more=1), "exactly the keys"),
        (result(recipe="bigan"), "no experiment bigan"),
        (result(minutes=0), "minutes"),
        (result(scores=[]), "scores must be a list"),
        (result(scores=[9.5]), "evaluation.json"),
        (result(scores=[score(class_name="cat")]), "of one class"),
        (result(scores=[score(value=None)]), "not finite"),
    ],
)
def test_a_bad_record_is_refused(
    project: ModuleType, capsys: pytest.CaptureFixture[str], content: Any, message: str
) -> None:
    write(project, content)
    assert project.main([]) == 2
    assert message in capsys.readouterr().err
    assert "old" in project.README.read_text()


def test_the_markers_must_be_there(project: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    project.README.write_text(f"{project.END}\n{project.BEGIN}\n")
    assert project.main([]) == 2
    assert "needs these two lines" in capsys.readouterr().err


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run of 30 steps in two log points of different speed."""
    lines = [
        {"step": 10, "speed/steps_per_s": 1.0, "speed/images_per_s": 64.0, "memory/peak_gib": 2.0},
        {"step": 30, "speed/steps_per_s": 0.1, "speed/images_per_s": 6.4, "memory/peak_gib": 1.0},
    ]
    records = {"records": [score(subject="a path"), score(class_name="cat")]}
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    for name, content in {
        ".hydra/config.yaml": "evaluator: {samples: 10, final_samples: 50000}\n",
        ".hydra/overrides.yaml": "- experiment=biggan\n- data.splits=[train]\n",
        "provenance.json": '{"sessions": [{"device": "GPU"}]}',
        "status.json": '{"status": "finished", "step": 30}',
        "metrics.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        "evaluation.json": json.dumps(records),
    }.items():
        (tmp_path / "run" / name).write_text(content)
    return tmp_path / "run"


def test_a_finished_run_gives_a_record(project: ModuleType, trained: Path) -> None:
    assert project.main(["--record", str(trained)]) == 0
    assert json.loads((project.RECORDS / "biggan.json").read_text()) == {
        "recipe": "biggan",
        "command": "cifargan train experiment=biggan 'data.splits=[train]'",
        "device": "GPU",
        "steps": 30,
        "images_seen": 30 * 64,
        "minutes": 3.5,
        "images_per_s": 35.2,
        "memory_gib": 2.0,
        "scores": [score(subject="biggan")],
    }
    assert "9.88" in project.README.read_text()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("status.json", '{"status": "interrupted"}', "interrupted, not finished"),
        ("evaluation.json", '{"records": []}', "no score after its training"),
        (".hydra/overrides.yaml", "[]", "without experiment="),
    ],
)
def test_other_runs_give_none(
    project: ModuleType, trained: Path, capsys: pytest.CaptureFixture[str], file: str, content: str, message: str
) -> None:
    (trained / file).write_text(content)
    assert project.main(["--record", str(trained)]) == 2
    assert message in capsys.readouterr().err
    assert list(project.RECORDS.iterdir()) == []
