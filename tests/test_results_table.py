"""The README's table of results: made from records alone, and checked."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PROJECT = Path(__file__).parents[1]


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
        "checkpoint": "best",
        "weights": "ema",
        "batch_norm": "standing",
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
def project(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A function that writes records, runs the script in a project of its own and gives its README."""
    records = tmp_path / "docs" / "results"
    records.mkdir(parents=True)
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    monkeypatch.setattr(script, "README", readme)
    monkeypatch.setattr(script, "RECORDS", records)

    def run(*contents: Any) -> str:
        for i, content in enumerate(contents):
            (records / f"{i}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        assert script.main([]) == 0
        return readme.read_text()

    return run


def test_the_readme_is_what_the_records_give(script: ModuleType) -> None:
    assert script.main(["--check"]) == 0


def test_without_records_it_says_so(script: ModuleType, project: Callable[..., str]) -> None:
    assert project() == f"before\n{script.BEGIN}\n\n{script.NOTHING}\n{script.END}\nafter\n"


def test_one_row_a_record_and_one_column_a_protocol(script: ModuleType, project: Callable[..., str]) -> None:
    scores = [score(), score(metric="is", value=8.5, spread=0.1, reference_name=None), score(truncation=0.5, value=1.0)]
    text = project(
        result(scores=scores),
        result(recipe="dcgan", memory_gib=None, scores=[score(value=7.5)]),
        result(recipe="sagan_bce", scores=[score(value=2.0, n=10_000, images=10_000)]),
    )
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")
    ]
    head = ["recipe", "device", "steps", "images seen", "minutes", "images/s", "memory"]
    assert rows[0][:7] == head
    assert rows[0][7:] == [
        "`fid_n50000_train` <sup>a</sup>",
        "`is_n50000` <sup>b</sup>",
        "`fid_n10000_train` <sup>c</sup>",
    ]
    assert rows[2:] == [
        ["[`dcgan`](docs/results/1.json)", "A\\|B", "1,000", "640,000", "62", "173", "-", "7.50", "-", "-"],
        [
            "[`biggan`](docs/results/0.json)",
            "A\\|B",
            "1,000",
            "640,000",
            "62",
            "173",
            "3.2 GiB",
            "9.88",
            "8.50 ± 0.10",
            "-",
        ],
        ["[`sagan_bce`](docs/results/2.json)", "A\\|B", "1,000", "640,000", "62", "173", "3.2 GiB", "-", "-", "2.00"],
    ]
    assert "- <sup>c</sup> fid: 10,000 images, against cifar10 train (50,000, abcdef01), inception 6726825d" in text
    assert script.main(["--check"]) == 0


def test_a_figure_typed_by_hand_is_found(
    script: ModuleType, project: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    project(result())
    script.README.write_text(script.README.read_text().replace("9.88", "9.78"))
    before = script.README.read_text()
    assert script.main(["--check"]) == 1
    assert "run scripts/results_table.py" in capsys.readouterr().err
    assert script.README.read_text() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "it must have exactly the keys recipe, command"),
        (result(more=1), "it must have exactly the keys"),
        (result(recipe="bigan"), "there is no experiment bigan; did you mean biggan"),
        (result(command="a\nb"), "command must be a text of one line"),
        (result(steps=1.5), "steps must be a whole number"),
        (result(minutes=0), "minutes must be a number above 0"),
        (result(images_per_s="many"), "images_per_s must be a number"),
        (result(memory_gib="8"), "memory_gib must be a number or null"),
        (result(scores=[]), "scores must be a list"),
        (result(scores=[9.5]), "is no record of evaluation.json"),
        (result(scores=[score(class_name="cat")]), "a score is of one class"),
        (result(scores=[score(value=None)]), "has no finite value"),
    ],
)
def test_a_bad_record_is_refused(
    script: ModuleType, project: Callable[..., str], capsys: pytest.CaptureFixture[str], content: Any, message: str
) -> None:
    project()
    (script.RECORDS / "bad.json").write_text(content if isinstance(content, str) else json.dumps(content))
    assert script.main(["--check"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_the_markers_must_be_there(
    script: ModuleType, project: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    script.README.write_text(f"{script.END}\n{script.BEGIN}\n")
    assert script.main([]) == 2
    assert "README.md needs these two lines" in capsys.readouterr().err


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A run of 30 steps in two log points of different speed."""
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text("evaluator: {samples: 10, final_samples: 50000}\n")
    (folder / ".hydra" / "overrides.yaml").write_text("- experiment=biggan\n- data.splits=[train]\n")
    (folder / "provenance.json").write_text('{"sessions": [{"device": "GPU"}]}')
    (folder / "status.json").write_text('{"status": "finished", "step": 30}')
    lines = [
        {"step": 10, "speed/steps_per_s": 1.0, "speed/images_per_s": 64.0, "memory/peak_gib": 2.0},
        {"step": 20, "score/fid": 3.0},
        {"step": 30, "speed/steps_per_s": 0.1, "speed/images_per_s": 6.4, "memory/peak_gib": 1.0},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    classes = score(class_name="cat")
    (folder / "evaluation.json").write_text(json.dumps({"records": [score(subject=str(folder)), classes]}))
    return folder


def test_a_run_makes_a_record(script: ModuleType, project: Callable[..., str], trained: Path) -> None:
    project()
    assert script.main(["--record", str(trained)]) == 0
    made = json.loads((script.RECORDS / "biggan.json").read_text())
    (only,) = made.pop("scores")
    assert made == {
        "recipe": "biggan",
        "command": "cifargan train experiment=biggan 'data.splits=[train]'",
        "device": "GPU",
        "steps": 30,
        "images_seen": 30 * 64,
        "minutes": 3.5,
        "images_per_s": 35.2,
        "memory_gib": 2.0,
    }
    assert only == score(subject="biggan")
    assert "9.88" in script.README.read_text()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("status.json", '{"status": "interrupted"}', "is interrupted, not finished"),
        ("evaluation.json", '{"records": []}', "has no score after its training"),
        (".hydra/overrides.yaml", "[]", "name its recipe with --recipe"),
        ("metrics.jsonl", "", "images_seen must be a whole number"),
    ],
)
def test_a_run_that_is_none_to_show_makes_no_record(
    script: ModuleType,
    project: Callable[..., str],
    trained: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    content: str,
    message: str,
) -> None:
    (trained / file).write_text(content)
    assert script.main(["--record", str(trained)]) == 2
    assert message in capsys.readouterr().err
    assert list(script.RECORDS.iterdir()) == []
