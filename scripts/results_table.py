"""The README's table of results, made from the records under docs/results/ and from nothing else.

    python scripts/results_table.py                           write the table between the README's two markers
    python scripts/results_table.py --check                   say whether it is what the records give
    python scripts/results_table.py --record RUN [--recipe R] make docs/results/R.json from a finished run, then write

A record is a JSON file with exactly these keys:

    recipe         the experiment, a file in conf/experiment/
    command        what was typed
    device         as its maker calls it
    steps          updates of the generator
    images_seen    real images that the discriminator was shown, each as often as it was
    minutes        of training, as its log points say; evaluations aside
    images_per_s   real images a second, the median of the last log points
    memory_gib     the device's peak; null where it was not measured
    scores         records as in evaluation.json, without those of single classes: each says its own protocol
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cifargan.errors import UserError, did_you_mean
from cifargan.evaluation.records import read_file
from cifargan.files import write_atomically, write_json
from cifargan.report.footnotes import Footnotes
from cifargan.report.reading import log_points, number, whole
from cifargan.report.scores import Score, headline, is_distance, record_from, score_of
from cifargan.report.summary import summary_of
from cifargan.runs.directory import RunDirectory
from cifargan.schema import conf_dir

PROJECT = Path(__file__).resolve().parents[1]
README, RECORDS = PROJECT / "README.md", PROJECT / "docs" / "results"
BEGIN = "<!-- results: written by scripts/results_table.py from docs/results/*.json, not by hand -->"
END = "<!-- /results -->"
NOTHING = "No full training has been recorded yet: `scripts/results_table.py --record RUN` adds one.\n"
OTHERS = ("is", "precision", "recall")  # beside the distances
KEYS = ("recipe", "command", "device", "steps", "images_seen", "minutes", "images_per_s", "memory_gib", "scores")


@dataclass(frozen=True, kw_only=True)
class Result:
    """One record, checked."""

    file: Path
    recipe: str
    command: str
    device: str
    steps: int
    images_seen: int
    minutes: float
    images_per_s: float
    memory_gib: float | None
    scores: tuple[Score, ...]


def read_result(file: Path) -> Result:
    """Read a record.

    Raises:
        UserError: it is not of the format above.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    return checked(content, file)


def checked(content: Any, file: Path) -> Result:
    """What a record says, if it is one.

    Raises:
        UserError: it is not of the format above.
    """
    if not isinstance(content, dict) or set(content) != set(KEYS):
        raise UserError(f"{file} is no result: it must have exactly the keys {', '.join(KEYS)}")
    for key in ("recipe", "command", "device"):
        if not isinstance(content[key], str) or not content[key].isprintable() or not content[key]:
            raise UserError(f"{file}: {key} must be a text of one line")
    recipes = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
    if content["recipe"] not in recipes:
        hint = did_you_mean(content["recipe"], recipes) or f"; choose from {', '.join(recipes)}"
        raise UserError(f"{file}: there is no experiment {content['recipe']}{hint}")
    for key in ("steps", "images_seen"):
        if not whole(content[key]):
            raise UserError(f"{file}: {key} must be a whole number from 1 on")
    for key in ("minutes", "images_per_s"):
        if (number(content[key]) or 0) <= 0:
            raise UserError(f"{file}: {key} must be a number above 0")
    if content["memory_gib"] is not None and number(content["memory_gib"]) is None:
        raise UserError(f"{file}: memory_gib must be a number or null")
    return Result(file=file, **{**content, "scores": _scores(file, content["scores"])})


def _scores(file: Path, flat: Any) -> tuple[Score, ...]:
    if not isinstance(flat, list) or not flat:
        raise UserError(f"{file}: scores must be a list of records as in evaluation.json")
    found = []
    for record in flat:
        known = record_from(record) if isinstance(record, dict) and record.get("class_name") is None else None
        if known is None:
            raise UserError(f"{file}: a score is of one class, has no finite value, or is no record of evaluation.json")
        found.append(score_of(known))
    return tuple(found)


def record(run: Path, recipe: str | None) -> Path:
    """Make a record of a finished run.

    Raises:
        UserError: it is not finished, was not scored after training, or does not say what it did.
    """
    directory, summary = RunDirectory(run), summary_of(run)
    if summary.status != "finished":
        raise UserError(f"{run} is {summary.status}, not finished")
    chosen = recipe or next(
        (o.removeprefix("experiment=") for o in summary.overrides if o.startswith("experiment=")), ""
    )
    if not chosen:
        raise UserError(f"{run} was trained without experiment=...: name its recipe with --recipe")
    final = {(score.key, score.protocol, score.step) for score in summary.scores}
    flat = []
    for line in read_file(directory.evaluation):
        known = record_from(line) if line.get("class_name") is None else None
        if known is not None and (known.key, (shown := score_of(known)).protocol, shown.step) in final:
            # Where it lay on that machine is nobody's business.
            flat.append({**line, "subject": chosen})
    if not flat:
        raise UserError(f"{run} has no score after its training: cifargan evaluate {run} gives them")
    minutes, seen, memory = _work(directory)
    content = {
        "recipe": chosen,
        "command": shlex.join(["cifargan", "train", *summary.overrides]),
        "device": summary.device,
        "steps": summary.step,
        "images_seen": seen,
        "minutes": minutes,
        "images_per_s": round(summary.images_per_s or 0.0, 1),
        "memory_gib": memory,
        "scores": flat,
    }
    file = RECORDS / f"{chosen}.json"
    checked(content, file)
    write_json(file, content)
    return file


def _work(directory: RunDirectory) -> tuple[float, int, float | None]:
    """Minutes of training, images seen, and the peak of memory in GiB, over all starts of a run."""
    seconds, images, memory, before = 0.0, 0.0, None, 0
    for step, line in log_points(directory):
        rate, speed = number(line.get("speed/steps_per_s")), number(line.get("speed/images_per_s"))
        if rate and speed:
            seconds += (step - before) / rate
            images += (step - before) * speed / rate
            before = step
        peak = number(line.get("memory/peak_gib"))
        memory = peak if memory is None or (peak is not None and peak > memory) else memory
    return round(seconds / 60, 3), round(images), None if memory is None else round(memory, 2)


def table(results: Sequence[Result]) -> str:
    """The table and a line for each protocol in it; scores of different protocols have columns of their own."""
    if not results:
        return NOTHING
    rows = [(result, [score for score in result.scores if _is_shown(score)]) for result in results]
    footnotes = Footnotes(score for _, scores in rows for score in scores)
    keys = {footnotes.of(score): score.key for _, scores in rows for score in scores}
    columns = [letter for letter in footnotes.letters.values() if letter in keys]
    head = ["recipe", "device", "steps", "images seen", "minutes", "images/s", "memory"]
    lines = [[*head, *(f"`{keys[letter]}` <sup>{letter}</sup>" for letter in columns)]]
    lines.append(["---"] * len(lines[0]))
    for result, scores in sorted(rows, key=lambda row: footnotes.order(headline(None, row[1]))):
        values = {footnotes.of(score): score.shown for score in scores}
        lines.append(
            [
                f"[`{result.recipe}`](docs/results/{result.file.name})",
                result.device.replace("|", "\\|"),
                f"{result.steps:,}",
                f"{result.images_seen:,}",
                f"{result.minutes:,.0f}",
                f"{result.images_per_s:,.0f}",
                "-" if result.memory_gib is None else f"{result.memory_gib:.1f} GiB",
                *(values.get(letter, "-") for letter in columns),
            ]
        )
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "\n".join(f"- <sup>{letter}</sup> {text}" for letter, text in footnotes.lines())
    return f"{body}\n\nEach recipe's link has its command and all its scores.\n\n{notes}\n"


def _is_shown(score: Score) -> bool:
    return score.truncation is None and (is_distance(score.metric) or score.metric.split("_")[0] in OTHERS)


def filled(readme: str, content: str) -> str:
    """The README with the content between its markers.

    Raises:
        UserError: the markers are not there once each, in order.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise UserError(f"README.md needs these two lines, once each: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{content}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the table is not current")
    parser.add_argument("--record", type=Path, metavar="RUN", help="make a record of a finished run first")
    parser.add_argument("--recipe", help="its recipe, where the run itself does not say")
    options = parser.parse_args(arguments)
    try:
        if options.record:
            print(record(options.record, options.recipe))
        results = [read_result(file) for file in sorted(RECORDS.glob("*.json"))]
        is_now = README.read_text(encoding="utf-8")
        should = filled(is_now, table(results))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.check and is_now != should:
        print(
            "README.md has another table than docs/results/*.json give: run scripts/results_table.py", file=sys.stderr
        )
        return 1
    if not options.check:
        write_atomically(README, should.encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
