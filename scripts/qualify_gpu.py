"""Qualifies a GPU within a time budget: its tests, the benchmark, trainings of every recipe, and a summary.

    python scripts/qualify_gpu.py --minutes 25 --data-root DIR          DIR/train/CLASS/*.jpg, DIR/test/CLASS/*.jpg
    python scripts/qualify_gpu.py --minutes 2 --small --device cpu      narrow networks on digits: to see it work

Called again with the same --out it goes on where it was interrupted: what is done stays done, trainings go on from their
checkpoints, and the time that is spent counts. `--leave-after` ends a call early, between or in the middle of things.
Everything to keep lies in OUT/summary, below 16 MB: summary.json, records, curves.png, grids, and what pytest and the
benchmark said. Trainings themselves lie in OUT/runs.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
SAMPLES = 10_000
POINTS = 8  # scores along a training
PROBE_SECONDS = 20.0
GRACE_SECONDS = 60.0  # for a checkpoint, after a signal
KEEP_MIB = 16
# Minutes of 25; the rest of the time goes to the first of them that wants more.
TRAININGS = {
    "biggan_lecam_diffaug": 9.0,
    "cdcgan_concat": 1.0,
    "acbiggan": 1.2,
    "sagan_bce": 0.8,
    "csagan_wgan": 1.2,
    "dcgan64": 0.7,
    "biggan": 1.2,
    "cdcgan_cbn": 0.5,
    "dcgan": 0.5,
    "biggan_original": 0.8,
    "biggan_lecam": 0.8,
    "dcgan_dense": 0.3,
}
BENCHMARKS = ("biggan_original", "biggan_lecam_diffaug", "dcgan")
TESTS_SHARE, BENCH_SHARE = 0.06, 0.12
SMALL_WIDTH = 16
DISTANCE = "fd_lite0_64"
SHOWN = ("fd", "kd", "precision", "recall")


class OutOfTimeError(Exception):
    """This call has used up its time."""


@dataclass
class Budget:
    """How much time is left, over all calls.

    Args:
        file: where what was done and spent is kept.
        total: seconds in all.
        call: seconds of this call.
    """

    file: Path
    total: float
    call: float

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.state: dict[str, Any] = (
            json.loads(self.file.read_text()) if self.file.exists() else {"spent": 0.0, "done": {}}
        )
        self.before = float(self.state["spent"])

    @property
    def spent(self) -> float:
        """Seconds spent, over all calls."""
        return self.before + time.monotonic() - self.began

    @property
    def left(self) -> float:
        """Seconds left to this call."""
        return min(self.total - self.spent, self.call - (time.monotonic() - self.began))

    def done(self, name: str) -> bool:
        """Whether a piece of work is done."""
        return name in self.state["done"]

    def note(self, name: str, **facts: Any) -> None:
        """Keep that a piece of work is done, and what came of it."""
        self.state["done"][name] = facts
        self.save()

    def save(self) -> None:
        """Keep the state, whole or not at all."""
        self.state["spent"] = self.spent
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(self.state, indent=2))
        partial.replace(self.file)


class Qualification:
    """All of it.

    Args:
        options: the command line's.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.out: Path = options.out.absolute()
        self.small: bool = options.small
        self.device: str = options.device
        self.data = ["data=digits", "data.image_size=32"]
        self.samples = 200 if options.small else options.samples
        self.data_root: Path | None = options.data_root and options.data_root.absolute()
        if self.data_root is not None:
            self.data = ["data=folder", f"data.root={self.data_root}"]
        self.summary = self.out / "summary"
        self.summary.mkdir(parents=True, exist_ok=True)
        self.total = 60 * options.minutes
        self.budget = Budget(self.out / "state.json", self.total, 60 * (options.leave_after or options.minutes))
        self.trainings = {name: 60 * minutes * options.minutes / 25 for name, minutes in TRAININGS.items()}
        if options.only:
            self.trainings = {name: self.trainings[name] for name in options.only.split(",")}

    def run(self) -> None:
        """Do what there is time for, in order of worth."""
        stages: list[tuple[str, Callable[[], dict[str, Any]]]] = [
            ("tests", self.tests),
            ("floor", self.floor),
            *((f"bench {preset}", lambda preset=preset: self.bench(preset)) for preset in BENCHMARKS),  # type: ignore[misc]
            *((f"train {name}", lambda name=name: self.train(name)) for name in self.trainings),  # type: ignore[misc]
        ]
        try:
            for name, work in stages:
                if self.budget.done(name):
                    continue
                if self.budget.left < 5:
                    raise OutOfTimeError
                say(f"{name}  ({self.budget.spent / 60:.1f} of {self.total / 60:g} minutes)")
                self.budget.note(name, **work())
        except OutOfTimeError:
            say("out of time: call this again with the same --out to go on")
        finally:
            self.budget.save()
            self.sum_up()

    def tests(self) -> dict[str, Any]:
        """The tests that need a GPU."""
        if self.device == "cpu" or not (PROJECT / "tests").is_dir():
            return {"skipped": "no CUDA device was asked for, or no tests are here"}
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(PROJECT / "tests")]
        code, seconds = self.call(command, TESTS_SHARE * self.total, self.summary / "tests.txt", cwd=PROJECT)
        return {"exit": code, "seconds": seconds}

    def floor(self) -> dict[str, Any]:
        """What real images score that training never saw: no generator can be expected below it."""
        if self.data_root is None:
            return {"skipped": "no --data-root"}
        real = ["--images", str(self.data_root / "test"), "--reference", str(self.data_root / "train")]
        report = self.out / "floor"
        code, seconds = self.cifargan(
            "evaluate", *real, "--evaluator", "efficientnet_lite0", "--out", str(report),
            limit=TESTS_SHARE * self.total, log=self.summary / "floor.txt",
        )  # fmt: skip
        return {"exit": code, "seconds": seconds, "scores": scores_of(report / "evaluation.json")}

    def bench(self, preset: str) -> dict[str, Any]:
        """A preset's race against plain PyTorch."""
        limit = BENCH_SHARE * self.total / len(BENCHMARKS)
        report = self.summary / f"bench_{preset}.json"
        options = ["--rounds", "2"] if self.small else ["--memory"]
        command = ["bench", preset, "--device", self.device, "--json", str(report), *options]
        code, seconds = self.cifargan(*command, limit=limit, log=self.summary / f"bench_{preset}.txt")
        return {"exit": code, "seconds": seconds}

    def train(self, name: str) -> dict[str, Any]:
        """A recipe for as long as it may take, then its scores and its pictures."""
        directory, log = self.out / "runs" / name, self.out / f"{name}.log"
        facts = self.budget.state.setdefault("trainings", {}).setdefault(name, {"seconds": 0.0})
        limit = self.trainings[name]
        recipe = [
            f"experiment={name}",
            *self.data,
            f"device={self.device}",
            *(narrow(name) if self.small else []),
        ]
        recipe += ["evaluator=efficientnet_lite0", f"evaluator.samples={self.samples}", "evaluator.final_samples=0"]
        recipe += ["trainer.steps=10000000", "trainer.log_every=50", "trainer.sample_every=1000", "trainer.keep=1"]
        recipe += ["trainer.checkpoint_every=1000", "resume=latest", f"hydra.run.dir={directory}"]
        recipe += ["data.splits=[train]"] + (["trainer.batch_size=16", "trainer.log_every=5"] if self.small else [])
        try:
            self.train_for(limit, recipe, directory, log, facts)
        except EndedError:
            return facts
        return {**facts, **self.judge(name, directory, log)}

    def train_for(self, limit: float, recipe: list[str], directory: Path, log: Path, facts: dict[str, Any]) -> None:
        """Train until `limit` seconds of training are done, over all calls."""
        if "every" not in facts:
            # How fast it is decides how often it is scored, so that curves have as many points on any card.
            probe = min(PROBE_SECONDS, limit / 4)
            self.stretch(recipe, ["evaluator.every=1000000000"], probe, directory, log, facts)
            rate = last_rate(directory) or 1.0
            facts["every"] = max(1, int(rate * limit / POINTS))
            self.budget.save()
        settings = [f"evaluator.every={facts['every']}"]
        while facts["seconds"] < limit - 2:
            self.stretch(recipe, settings, limit - facts["seconds"], directory, log, facts)
            self.budget.save()

    def stretch(
        self, recipe: list[str], more: list[str], seconds: float, directory: Path, log: Path, facts: dict[str, Any]
    ) -> None:
        """Train for so long, without what it takes to get going; a checkpoint is at the end.

        Raises:
            OutOfTimeError: there is no time left for it.
            EndedError: it ended by itself, or left no checkpoint.
        """
        spare = 30.0 if not self.small else 10.0
        if self.budget.left < min(seconds, 5) + spare:
            raise OutOfTimeError
        seconds = min(seconds, self.budget.left - spare)
        before = progress(directory)
        command = [sys.executable, "-m", "cifargan", "train", *recipe, *more]
        facts["command"] = shlex.join(["cifargan", *command[3:]])
        with log.open("a") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment())
        began: float | None = None
        killed = False
        while process.poll() is None:
            time.sleep(0.2)
            if began is None and progress(directory) != before:
                began = time.monotonic()
            late = self.budget.left < spare / 2
            if late or (began is not None and time.monotonic() - began > seconds):
                # Not SIGINT: a shell has its background jobs ignore it.
                process.terminate()
                try:
                    process.wait(GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    killed = True
        facts["seconds"] += time.monotonic() - began if began is not None else 0.0
        if killed and any((directory / "checkpoints").glob("step_*.pt")):
            say(f"  it did not stop within {GRACE_SECONDS:.0f} s: on from its newest checkpoint")
        elif began is None and process.returncode == -signal.SIGTERM:
            raise OutOfTimeError  # before it had begun
        elif process.returncode != 128 + signal.SIGTERM:
            facts["ended"] = f"exit {process.returncode}: {last_line(log)}"
            say(f"  {facts['ended']}")
            raise EndedError

    def judge(self, name: str, directory: Path, log: Path) -> dict[str, Any]:
        """Scores against train, sheets at two truncations, and where the real test images stand."""
        step = json.loads((directory / "status.json").read_text())["step"]
        # The run is as long as it is: only a finished one may be recorded as a result.
        self.cifargan("train", f"resume={directory}", f"trainer.steps={step}", limit=120, log=log)
        command = ["evaluate", str(directory), "--samples", str(self.samples), "--reference", "train"]
        scored, seconds = self.cifargan(*command, "--evaluator", "efficientnet_lite0", limit=240, log=log)
        sheets = []
        for truncation in ("1.0", "0.5"):
            folder = self.out / "sheets" / f"{name}-{truncation}"
            self.cifargan("sample", str(directory), "--truncation", truncation, "--per-class", "10", "--out", str(folder),
                          limit=120, log=log)  # fmt: skip
            target = self.summary / f"{name}-truncation_{truncation}.png"
            pictures = sorted(folder.glob("*overview*.png")) or sorted(folder.glob("*.png"))
            sheets += [shutil.copy(picture, target) for picture in pictures[:1]]
        for file in ("metrics.jsonl", "evaluation.json"):
            if (directory / file).exists():
                shutil.copy(directory / file, self.summary / f"{name}-{file}")
        table = [sys.executable, str(PROJECT / "scripts" / "results_table.py"), "--record", str(directory)]
        facts = {
            "step": step,
            "scored": scored,
            "evaluation_seconds": seconds,
            "scores": scores_of(directory / "evaluation.json"),
            "sheets": [Path(s).name for s in sheets],
        }
        return {**facts, "record": shlex.join(["python", "scripts/results_table.py", *table[2:]])}

    def sum_up(self) -> None:
        """summary.json and the curves, of all that is there."""
        done = self.budget.state["done"]
        summary = {"machine": machine(), "minutes": self.budget.spent / 60, "data": self.data, "stages": done}
        summary["curves"] = {name: curve(self.out / "runs" / name) for name in self.trainings}
        (self.summary / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
        floor = done.get("floor", {}).get("scores", {})
        # Few images are farther from the reference than many, so that other numbers of them make no floor.
        level = floor.get(DISTANCE) if floor.get("n") == self.samples else None
        draw({name: points for name, points in summary["curves"].items() if points}, self.summary / "curves.png", level)
        for line in table(done):
            say(line)
        size = sum(path.stat().st_size for path in self.summary.rglob("*") if path.is_file()) / 2**20
        say(f"{self.summary}: {size:.1f} MiB" + (f", which is more than {KEEP_MIB}" if size > KEEP_MIB else ""))

    def cifargan(self, *arguments: str, limit: float, log: Path) -> tuple[int, float]:
        """Call the command line, for as long as there is time."""
        return self.call([sys.executable, "-m", "cifargan", *arguments], limit, log)

    def call(self, command: list[str], limit: float, log: Path, cwd: Path | None = None) -> tuple[int, float]:
        """A command's exit code (124 where it took too long) and its seconds.

        Raises:
            OutOfTimeError: it would have been allowed longer, had there been time.
        """
        began = time.monotonic()
        left = self.budget.left
        if left < 1:
            raise OutOfTimeError
        short, limit = left < limit, min(limit, left)
        with log.open("a") as file:
            try:
                ran = subprocess.run(command, stdout=file, stderr=file, timeout=limit, env=environment(), cwd=cwd)
                code = ran.returncode
            except subprocess.TimeoutExpired:
                code = 124
        if short and code == 124:
            raise OutOfTimeError
        seconds = time.monotonic() - began
        say(f"  {shlex.join(command[2:5])} ...: exit {code}, {seconds:.0f} s")
        return code, seconds


class EndedError(Exception):
    """A training ended before it was told to."""


def narrow(recipe: str) -> list[str]:
    """The overrides that make a recipe's networks narrow."""
    from cifargan.bench.presets import compose, narrowed

    config = compose(recipe)
    small = narrowed(config, SMALL_WIDTH)
    return [
        f"model.{part}.{key}={value}"
        for part in ("generator", "discriminator")
        for key, value in small.model[part].items()
        if value != config.model[part][key]
    ]


def say(line: str) -> None:
    """Tell what is being done."""
    print(line, flush=True)


def environment() -> dict[str, str]:
    """The package of this checkout, wherever this is called from."""
    path = os.pathsep.join(filter(None, [str(PROJECT / "src"), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def lines_of(directory: Path) -> list[dict[str, Any]]:
    """What a run has logged so far."""
    try:
        return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return []


def progress(directory: Path) -> int:
    """How many log points a run has."""
    return len(lines_of(directory))


def last_rate(directory: Path) -> float | None:
    """Steps a second at the last log point."""
    rates = [line["speed/steps_per_s"] for line in lines_of(directory) if "speed/steps_per_s" in line]
    return float(rates[-1]) if rates else None


def last_line(log: Path) -> str:
    """The last words."""
    return next((line for line in reversed(log.read_text().splitlines()) if line.strip()), "")


def curve(directory: Path) -> list[dict[str, float]]:
    """Distance to the training images against time spent training, breaks and evaluations left out."""
    points, seconds, before = [], 0.0, None
    for line in lines_of(directory):
        if line.get("speed/steps_per_s"):
            seconds += (line["step"] - (before or 0)) / line["speed/steps_per_s"]
            before = line["step"]
        points += [
            {"seconds": seconds, "step": line["step"], record["metric"]: record["value"]}
            for record in line.get("records", [])
            if record.get("class_name") is None and record["metric"].startswith("fd")
        ]
    return points


def scores_of(file: Path) -> dict[str, float]:
    """The newest scores of all classes together in an evaluation.json, and of how many images; {}: there are none."""
    try:
        records = json.loads(file.read_text())["records"]
    except (OSError, ValueError, KeyError):
        return {}
    whole = [record for record in records if record["class_name"] is None]
    return {key: value for record in whole for key, value in ((record["metric"], record["value"]), ("n", record["n"]))}


def table(done: dict[str, dict[str, Any]]) -> list[str]:
    """What was scored, best first: the order that recipes are expected in can be read off."""
    scored = {name.removeprefix("train "): facts for name, facts in done.items() if facts.get("scores")}
    rows = []
    for name, facts in sorted(scored.items(), key=lambda item: _distance(item[1]["scores"])):
        values = [f"{metric} {value:.4g}" for metric, value in facts["scores"].items() if metric.startswith(SHOWN)]
        if not any(value.startswith("fd") for value in values):
            continue
        made = "real test images" if name == "floor" else f"{facts['step']:,} steps, {facts['seconds'] / 60:.1f} min"
        rows.append(f"  {name:22}{', '.join(values)}  ({made})")
    return rows


def _distance(scores: dict[str, float]) -> float:
    return next((value for metric, value in scores.items() if metric.startswith("fd")), float("inf"))


def draw(curves: dict[str, list[dict[str, float]]], file: Path, floor: float | None) -> None:
    """Score against minutes, a line each, and the score of real images that were not trained on."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    metric = ""
    for name, points in curves.items():
        metric = next(key for key in points[0] if key not in ("seconds", "step"))
        axes.plot([p["seconds"] / 60 for p in points], [p[metric] for p in points], marker=".", label=name)
    if floor is not None:
        axes.axhline(floor, color="black", linestyle="--", label="real test images")
    axes.set(xlabel="minutes of training", ylabel=metric or "score", xscale="log", yscale="log")
    if curves or floor is not None:
        axes.legend(fontsize="small")
    figure.savefig(file, dpi=110)


def machine() -> dict[str, Any]:
    """What this was measured on."""
    import torch

    from cifargan.runs.provenance import device_name, versions

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"device": device_name(device), "cores": os.cpu_count(), "versions": versions()}


def main() -> None:
    """Qualify."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0, help="in all, over all calls (default: 25)")
    parser.add_argument("--leave-after", type=float, metavar="MINUTES", help="end this call earlier")
    parser.add_argument("--out", type=Path, default=Path("outputs/qualify"))
    parser.add_argument("--data-root", type=Path, help="a folder with train/ and test/, a folder a class in each")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"that are scored (default: {SAMPLES})")
    parser.add_argument("--small", action="store_true", help="narrow networks, few samples: to try it out")
    parser.add_argument("--only", metavar="A,B", help="these recipes alone")
    Qualification(parser.parse_args()).run()


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT / "src"))
    main()
