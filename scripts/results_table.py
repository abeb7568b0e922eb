"""Write the README's table of results from the records in docs/results/.

    python scripts/results_table.py                           write the table between the README's two markers
    python scripts/results_table.py --check                   report whether the table matches the records
    python scripts/results_table.py --record RUN              write docs/results/RECIPE.json for a finished run, then the table

A record is a JSON file with exactly these keys:

    recipe         the experiment, a file in conf/experiment/
    command        the training command
    device         the device's name
    steps          updates of the generator
    images_seen    real images that the discriminator has seen, with repetition
    minutes        of training according to the log points, without evaluations
    images_per_s   real images a second, the median of the last log points
    memory_gib     the device's peak; null where it was not measured
    scores         records as in evaluation.json, without those of single classes
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cifargan.errors import UserError
from cifargan.evaluation.records import Record, formatted, read_file
from cifargan.files import write_atomically, write_json
from cifargan.runs.directory import RunDirectory
from cifargan.runs.listing import Footnotes
from cifargan.runs.read import headline, is_distance, log_points, number, record_from, summary_of
from cifargan.schema import conf_dir

PROJECT = Path(__file__).resolve().parents[1]
README, RECORDS = PROJECT / "README.md", PROJECT / "docs" / "results"
BEGIN = "<!-- results: written by scripts/results_table.py from docs/results/*.json, not by hand -->"
END = "<!-- /results -->"
NOTHING = "No full training has been recorded yet: `scripts/results_table.py --record RUN` adds one.\n"
OTHERS = ("is", "precision", "recall")  # shown beside the distances
NUMBERS = ("steps", "images_seen", "minutes", "images_per_s")
KEYS = ("recipe", "command", "device", *NUMBERS, "memory_gib", "scores")


class Result(NamedTuple):
    """A checked record: its file, its content and its scores."""

    file: Path
    content: dict[str, Any]
    scores: list[Record]


def checked(content: Any, file: Path) -> Result:
    """Check the content of a record; raises UserError where it does not have the format above."""
    if not isinstance(content, dict) or set(content) != set(KEYS):
        raise UserError(f"{file} is not a result: it must have exactly the keys {', '.join(KEYS)}")
    if content["recipe"] not in [path.stem for path in Path(conf_dir(), "experiment").glob("*.yaml")]:
        raise UserError(f"{file}: there is no experiment {content['recipe']}")
    if any((number(content[key]) or 0) <= 0 for key in NUMBERS):
        raise UserError(f"{file}: {', '.join(NUMBERS)} must be numbers above 0")
    if not isinstance(content["scores"], list) or not content["scores"]:
        raise UserError(f"{file}: scores must be a list of records as in evaluation.json")
    flat = [line for line in content["scores"] if isinstance(line, dict) and line.get("class_name") is None]
    scores = [record for record in map(record_from, flat) if record is not None]
    if len(scores) < len(content["scores"]):
        raise UserError(f"{file}: a score is of one class, is not finite, or is not a record of evaluation.json")
    return Result(file, content, scores)


def read(file: Path) -> Result:
    """Read and check a record."""
    try:
        return checked(json.loads(file.read_text(encoding="utf-8")), file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def record(run: Path) -> Path:
    """Write the record of a finished run; raises UserError where the run is not finished or has no final score."""
    directory, summary = RunDirectory(run), summary_of(run)
    if summary.status != "finished":
        raise UserError(f"{run} is {summary.status}, not finished")
    named = dict(override.partition("=")[::2] for override in summary.overrides)
    if "experiment" not in named:
        raise UserError(f"{run} was trained without experiment=..., so it is not a result of a recipe")
    final = {(score.key, score.conditions(), score.protocol.step) for score in summary.scores}
    flat = []
    for line in read_file(directory.evaluation):
        known = record_from(line) if line.get("class_name") is None else None
        if known is not None and (known.key, known.conditions(), known.protocol.step) in final:
            flat.append({**line, "subject": named["experiment"]})  # not the path on the machine that trained it
    if not flat:
        raise UserError(f"{run} has no score after its training: cifargan evaluate {run} gives them")
    content = {
        "recipe": named["experiment"],
        "command": shlex.join(["cifargan", "train", *summary.overrides]),
        "device": summary.device,
        "steps": summary.step,
        **_work(directory),
        "images_per_s": round(summary.images_per_s or 0.0, 1),
        "scores": flat,
    }
    file = checked(content, RECORDS / f"{named['experiment']}.json").file
    write_json(file, {key: content[key] for key in KEYS})
    return file


def _work(directory: RunDirectory) -> dict[str, Any]:
    """Images seen, minutes of training and peak memory, over all starts of a run."""
    seconds, images, before = 0.0, 0.0, 0
    peaks: list[float] = []
    for step, line in log_points(directory):
        rate, speed = number(line.get("speed/steps_per_s")), number(line.get("speed/images_per_s"))
        if rate and speed:
            seconds += (step - before) / rate
            images += (step - before) * speed / rate
            before = step
        peaks += [round(peak, 2)] if (peak := number(line.get("memory/peak_gib"))) is not None else []
    return {"images_seen": round(images), "minutes": round(seconds / 60, 3), "memory_gib": max(peaks, default=None)}


def table(results: Sequence[Result]) -> str:
    """The table and a line for each protocol in it; each protocol has its own column."""
    if not results:
        return NOTHING
    rows = [(result, [score for score in result.scores if _is_shown(score)]) for result in results]
    footnotes = Footnotes(score for _, scores in rows for score in scores)
    keys = {footnotes.of(score): score.key for _, scores in rows for score in scores}
    columns = list(footnotes.letters.values())
    head = ["recipe", "device", "steps", "images seen", "minutes", "images/s", "memory"]
    lines = [[*head, *(f"`{keys[letter]}` <sup>{letter}</sup>" for letter in columns)]]
    lines.append(["---"] * len(lines[0]))
    for result, scores in sorted(rows, key=lambda row: footnotes.order(headline(None, row[1]))):
        values = {footnotes.of(score): formatted(score) for score in scores}
        content = result.content
        cells = [f"[`{content['recipe']}`](docs/results/{result.file.name})", content["device"].replace("|", "\\|")]
        cells += [f"{content[key]:,.0f}" for key in ("steps", "images_seen", "minutes", "images_per_s")]
        cells.append("-" if content["memory_gib"] is None else f"{content['memory_gib']:.1f} GiB")
        lines.append([*cells, *(values.get(letter, "-") for letter in columns)])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "\n".join(f"- <sup>{letter}</sup> {text}" for letter, text in footnotes.lines())
    return f"{body}\n\nEach recipe's link has its command and all its scores.\n\n{notes}\n"


def _is_shown(score: Record) -> bool:
    return score.protocol.truncation is None and (is_distance(score.metric) or score.metric.split("_")[0] in OTHERS)


def filled(readme: str, content: str) -> str:
    """The README with `content` between its markers; raises UserError unless each marker is there once, in order."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise UserError(f"README.md needs these two lines, once each: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{content}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the table; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the table is out of date")
    parser.add_argument("--record", type=Path, metavar="RUN", help="write the record of a finished run first")
    options = parser.parse_args(arguments)
    try:
        if options.record:
            print(record(options.record))
        current = README.read_text(encoding="utf-8")
        expected = filled(current, table([read(file) for file in sorted(RECORDS.glob("*.json"))]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not options.check:
        write_atomically(README, expected.encode())
    elif current != expected:
        print("README.md does not match docs/results/*.json: run scripts/results_table.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
