"""The result of a sweep, read from the folders of its jobs: a table, means over seeds, and the same in a file."""

import re
import shlex
import shutil
import statistics
from collections.abc import Sequence
from typing import Any

from cifargan.cli.launching import DEVICES
from cifargan.cli.sweep import FILE, Sweep
from cifargan.cli.tables import aligned
from cifargan.compose import key_of
from cifargan.evaluation.records import Record
from cifargan.files import write_json
from cifargan.runs.directory import RunDirectory
from cifargan.runs.read import RunSummary, is_distance, summary_of
from cifargan.untrusted import readable

TAIL = 2**16  # bytes of a log that hold its last lines
LAST_ERROR = re.compile(r"^\S+ \S+ ERROR (?P<message>.*)$", re.MULTILINE)


def summarise(sweep: Sweep) -> int:
    """Print the jobs of a sweep and write them to its file; 2 if a job is not finished, 128 + n after signal n."""
    shutil.rmtree(sweep.directory / DEVICES, ignore_errors=True)
    runs = {name: summary_of(sweep.directory / name) for name in sweep.jobs}
    states = {name: status_of(RunDirectory(sweep.directory / name), run) for name, run in runs.items()}
    several = len(sweep.jobs) > 1
    common = {o for o in next(iter(sweep.jobs.values())) if several and all(o in job for job in sweep.jobs.values())}
    rows, reasons, entries = [["job", "status", "step", "best", "overrides"]], [""], []
    for name, run in runs.items():
        own = shlex.join(o for o in sweep.jobs[name] if o not in common)
        best = "-" if run.best is None else f"{run.best.value:.4g}"
        rows.append([name, states[name], "-" if states[name] == "missing" else str(run.step), best, readable(own)])
        failed = states[name] in ("failed", "diverged", "missing")
        reasons.append(reason_of(RunDirectory(sweep.directory / name)) if failed else "")
        about: dict[str, Any] = {"folder": name, "overrides": list(sweep.jobs[name]), "status": states[name]}
        about |= {"step": run.step, "seed": run.seed, "scores": {key: s.value for key, s in _scores(run).items()}}
        entries.append(about | ({"error": reasons[-1]} if reasons[-1] else {}))
    print()
    for line, reason in zip(aligned(rows), reasons, strict=True):
        print(line + (f"\n     {reason}" if reason else ""))
    finished = {name: run for name, run in runs.items() if states[name] == "finished"}
    settings = over_seeds([(sweep.jobs[name], run) for name, run in finished.items()])
    if any(setting["seeds"] > 1 and setting["scores"] for setting in settings):
        print("\nmean ± standard deviation over the seeds")
        print("\n".join(aligned(_mean_rows(settings, common))))
    write_json(sweep.directory / FILE, {"jobs": entries, "settings": settings})
    if len(finished) < len(runs):
        again = [word for word in sweep.command[1:] if key_of(word) not in ("sweep", "hydra.sweep.dir")]
        print(
            f"resume with: cifargan train {shlex.join([*again, f'hydra.sweep.dir={sweep.directory}', 'sweep=resume'])}"
        )
    print(f"{len(finished)} of {len(runs)} jobs finished, in {sweep.directory}")
    if sweep.stop_signal is not None:
        return 128 + sweep.stop_signal
    return 2 if len(finished) < len(runs) else 0


def status_of(directory: RunDirectory, run: RunSummary) -> str:
    """The status of a job: `failed` where its start failed, `missing` where it never started."""
    if directory.holds_a_run():
        return run.status
    return "failed" if (directory.path / "train.log").is_file() else "missing"


def reason_of(directory: RunDirectory) -> str:
    """The last error in a run's log, on one line; empty where there is none."""
    try:
        with (directory.path / "train.log").open("rb") as file:
            file.seek(max(file.seek(0, 2) - TAIL, 0))
            text = file.read().decode("utf-8", "replace").rstrip()
    except OSError:
        return ""
    messages = [match["message"] for match in LAST_ERROR.finditer(text)]
    if messages and messages[-1].startswith("Traceback"):
        return readable(text.splitlines()[-1])
    return readable(messages[-1]) if messages else ""


def over_seeds(runs: Sequence[tuple[tuple[str, ...], RunSummary]]) -> list[dict[str, Any]]:
    """Mean and standard deviation (n - 1) of each score over the jobs that differ only in the seed.

    A score that was measured by different protocols has no mean.
    """
    groups: dict[tuple[str, ...], list[dict[str, Record]]] = {}
    for overrides, run in runs:
        groups.setdefault(tuple(sorted(o for o in overrides if key_of(o) != "seed")), []).append(_scores(run))
    settings = []
    for overrides, found in groups.items():
        means = {}
        for name in dict.fromkeys(name for scores in found for name in scores):
            scores = [one[name] for one in found if name in one]
            values = [score.value for score in scores]
            if len({score.group for score in scores}) == 1:
                std = statistics.stdev(values) if len(values) > 1 else None
                means[name] = {"mean": statistics.fmean(values), "std": std, "n": len(values)}
        settings.append({"overrides": list(overrides), "seeds": len(found), "scores": means})
    return settings


def _scores(run: RunSummary) -> dict[str, Record]:
    best = {} if run.best is None else {f"best {run.best.key}": run.best}
    return {**best, **{score.key: score for score in run.scores}}


def _mean_rows(settings: Sequence[dict[str, Any]], common: set[str]) -> list[list[str]]:
    """A row for each setting, a column for each distance; the other scores are in the file."""
    names = list(dict.fromkeys(name for setting in settings for name in setting["scores"]))
    names = [name for name in names if is_distance(name.removeprefix("best "))]

    def cell(score: dict[str, Any] | None) -> str:
        if score is None:
            return "-"
        return f"{score['mean']:.4g}" + ("" if score["std"] is None else f" ± {score['std']:.2g}")

    rows = [["seeds", *names, "overrides"]]
    for setting in settings:
        own = shlex.join(override for override in setting["overrides"] if override not in common)
        rows.append([f"{setting['seeds']:>5}", *(cell(setting["scores"].get(name)) for name in names), readable(own)])
    return rows
