"""What came of a sweep, from what lies in its jobs' folders: a table, and the same in its file."""

import re
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifargan.cli.sweep import FILE, Job, Sweep, as_entry
from cifargan.cli.tables import aligned
from cifargan.compose import key_of
from cifargan.evaluation.records import Record
from cifargan.files import write_json
from cifargan.runs.directory import RunDirectory
from cifargan.runs.read import RunSummary, is_distance, summary_of
from cifargan.untrusted import readable

TAIL = 2**16  # bytes of a log that hold its last lines
LAST_ERROR = re.compile(r"^\S+ \S+ ERROR (?P<message>.*)$", re.MULTILINE)
DONE, FAILED = ("finished",), ("failed", "diverged", "missing")


def summarise(sweep: Sweep) -> int:
    """Print how the jobs of a sweep stand and write it to its `summary.json`; 2 if any is not done, 128 + n if stopped."""
    runs = [(job, summary_of(job.directory)) for job in sweep.jobs]
    states = [status_of(job, run) for job, run in runs]
    common = _common([job.overrides for job in sweep.jobs])
    rows = [["job", "status", "step", "best", "overrides"]]
    reasons = []
    entries = []
    for (job, run), status in zip(runs, states, strict=True):
        reason = reason_of(job.directory) if status in FAILED else ""
        own = [override for override in job.overrides if override not in common]
        best = "-" if run.best is None else f"{run.best.value:.4g}"
        step = str(run.step) if RunDirectory(job.directory).holds_a_run() else "-"
        rows.append([f"{job.directory.name:>3}", status, step, best, readable(shlex.join(own))])
        reasons.append(reason)
        entries.append({**as_entry(job), "status": status, **_results(run), **({"error": reason} if reason else {})})
    print()
    for line, reason in zip(aligned(rows), ["", *reasons], strict=True):
        print(line)
        if reason:
            print(f"     {reason}")
    settings = over_seeds([(job, run) for (job, run), status in zip(runs, states, strict=True) if status in DONE])
    if any(setting["seeds"] > 1 and setting["scores"] for setting in settings):
        print("\nmean ± standard deviation over the seeds")
        print("\n".join(aligned(_mean_rows(settings, common))))
    write_json(sweep.directory / FILE, {"jobs": entries, "settings": settings})
    done = sum(status in DONE for status in states)
    if done < len(states):
        print(f"go on with: cifargan train {shlex.join([*_again(sweep), 'sweep=resume'])}")
    print(f"{done} of {len(states)} jobs finished, in {sweep.directory}")
    number = sweep.stop_signal
    if number is not None:
        return 128 + number
    return 2 if done < len(states) else 0


def _again(sweep: Sweep) -> list[str]:
    """The arguments that mean the same sweep in the same folder."""
    given = [word for word in sweep.command[1:] if key_of(word) not in ("sweep", "hydra.sweep.dir")]
    return [*given, f"hydra.sweep.dir={sweep.directory}"]


def status_of(job: Job, run: RunSummary) -> str:
    """How a job stands: what its run says, `failed` where it did not come to a run, `missing` where it never began."""
    if RunDirectory(job.directory).holds_a_run():
        return run.status
    return "failed" if (job.directory / "train.log").is_file() else "missing"


def reason_of(directory: Path) -> str:
    """The last error in a run's log, on one line; empty where there is none."""
    try:
        with (directory / "train.log").open("rb") as file:
            file.seek(max(file.seek(0, 2) - TAIL, 0))
            text = file.read().decode("utf-8", "replace").rstrip()
    except OSError:
        return ""
    errors = list(LAST_ERROR.finditer(text))
    if not errors:
        return ""
    message = errors[-1]["message"]
    return readable(text.splitlines()[-1] if message.startswith("Traceback") else message)


def over_seeds(runs: Sequence[tuple[Job, RunSummary]]) -> list[dict[str, Any]]:
    """Mean and deviation of every score over the jobs that differ in nothing but the seed.

    Only scores of one protocol are put together; where a job has another one, that score is left out.
    """
    groups: dict[tuple[str, ...], list[RunSummary]] = {}
    for job, run in runs:
        groups.setdefault(tuple(o for o in job.overrides if key_of(o) != "seed"), []).append(run)
    return [{"overrides": list(own), "seeds": len(found), "scores": _means(found)} for own, found in groups.items()]


def _means(runs: Sequence[RunSummary]) -> dict[str, dict[str, Any]]:
    named: dict[str, list[Record]] = {}
    for run in runs:
        for name, score in _scores(run).items():
            named.setdefault(name, []).append(score)
    means: dict[str, dict[str, Any]] = {}
    for name, scores in named.items():
        if len({score.group for score in scores}) > 1:
            continue
        values = [score.value for score in scores]
        # Of a sample of seeds: n - 1.
        std = statistics.stdev(values) if len(values) > 1 else None
        means[name] = {"mean": statistics.fmean(values), "std": std, "n": len(values)}
    return means


def _scores(run: RunSummary) -> dict[str, Record]:
    best = {} if run.best is None else {f"best {run.best.key}": run.best}
    return {**best, **{score.key: score for score in run.scores}}


def _results(run: RunSummary) -> dict[str, Any]:
    best = None if run.best is None else {"key": run.best.key, "value": run.best.value, "step": run.best.protocol.step}
    return {"step": run.step, "seed": run.seed, "best": best, "scores": {s.key: s.value for s in run.scores}}


def _mean_rows(settings: Sequence[dict[str, Any]], common: Sequence[str]) -> list[list[str]]:
    """A row a setting, the distances in columns; the rest is in the file."""
    names = list(dict.fromkeys(name for setting in settings for name in setting["scores"]))
    names = [name for name in names if is_distance(name.removeprefix("best "))]
    rows = [["seeds", *names, "overrides"]]
    for setting in settings:
        cells = [_plus_minus(setting["scores"].get(name)) for name in names]
        own = [override for override in setting["overrides"] if override not in common]
        rows.append([f"{setting['seeds']:>5}", *cells, readable(shlex.join(own))])
    return rows


def _plus_minus(score: dict[str, Any] | None) -> str:
    if score is None:
        return "-"
    return f"{score['mean']:.4g}" + ("" if score["std"] is None else f" ± {score['std']:.2g}")


def _common(jobs: Sequence[tuple[str, ...]]) -> list[str]:
    """The overrides that all jobs have, where there are several."""
    return [o for o in jobs[0] if all(o in other for other in jobs)] if len(jobs) > 1 else []
