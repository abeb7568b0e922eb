"""Qualify a GPU within a time budget: its tests, the benchmark, and a training of every recipe with scores and sheets.

    python scripts/qualify_gpu.py --minutes 25 --data-root DIR          DIR/train/CLASS/*.jpg, DIR/test/CLASS/*.jpg
    python scripts/qualify_gpu.py --minutes 2 --small --device cpu      narrow networks on digits: tries this script

Each finding is one JSON line, printed and appended to OUT/findings.jsonl at once. Called again with the same --out, the
script skips the stages that have a line and resumes an unfinished training from its checkpoint. `--leave-after` ends a
call early. OUT/summary holds what is worth keeping: logs, scores, class sheets, report.html; OUT/runs holds the runs.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
SAMPLES = 10_000
POINTS = 8  # scores along a training
PROBE_SECONDS = 20.0
SPARE_SECONDS = 30.0  # kept at the end of a call: for a training to begin in, and for its last checkpoint
GRACE_SECONDS = 60.0  # for a checkpoint, after SIGTERM
# Minutes of training if the script has 25; tests, benchmark, starts and scores take the rest.
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
BENCHMARKS = {"biggan_original": 1.0, "biggan_lecam_diffaug": 1.0, "dcgan": 1.0}  # minutes of 25 at most
TESTS, FLOOR = 1.5, 1.5  # the same
TIMED_OUT = 124
SMALL_WIDTH = 16
EVALUATOR = "efficientnet_lite0"  # its weights come with a package: no network is needed


class OutOfTimeError(Exception):
    """This call has used its time."""


class Qualification:
    """The stages and the time that is left for them.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.out: Path = options.out.absolute()
        self.summary = self.out / "summary"
        self.summary.mkdir(parents=True, exist_ok=True)
        self.small: bool = options.small
        self.device: str = options.device
        self.data_root: Path | None = options.data_root and options.data_root.absolute()
        self.samples: int = 200 if options.small else options.samples
        self.trainings: list[str] = options.only.split(",") if options.only else list(TRAININGS)
        self.minute = 60 * options.minutes / 25  # seconds of each of the minutes above
        self.deadline = time.monotonic() + 60 * (options.leave_after or options.minutes)

    @property
    def left(self) -> float:
        """Seconds left to this call."""
        return self.deadline - time.monotonic()

    def run(self) -> None:
        """Run every stage that has no finding yet, the most valuable first."""
        stages: dict[str, Callable[[], dict[str, Any]]] = {
            "machine": machine,
            "tests": self.tests,
            "floor": self.floor,
            **{f"bench {preset}": partial(self.bench, preset) for preset in BENCHMARKS},
            **{f"train {name}": partial(self.train, name) for name in self.trainings},
            "report": self.report,
        }
        findings = self.out / "findings.jsonl"
        done = {line["stage"] for line in json_lines(findings)}
        try:
            for stage, work in stages.items():
                if stage in done:
                    continue
                if self.left < 5:
                    raise OutOfTimeError
                finding = json.dumps({"stage": stage, **work()})
                print(finding, flush=True)
                with findings.open("a") as file:
                    file.write(f"{finding}\n")
        except OutOfTimeError:
            print("out of time: run this again with the same --out to continue", file=sys.stderr)

    def tests(self) -> dict[str, Any]:
        """Run the tests that need a GPU."""
        if self.device == "cpu":
            return {"skipped": "--device cpu"}
        command = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
        return self.call(*command, limit=TESTS * self.minute, log=self.summary / "tests.txt")

    def floor(self) -> dict[str, Any]:
        """Score real test images: no generator can be expected to score better."""
        if self.data_root is None:
            return {"skipped": "no --data-root"}
        folder = self.out / "floor"
        images = ["--images", str(self.data_root / "test"), "--reference", str(self.data_root / "train")]
        command = ["evaluate", *images, "--evaluator", EVALUATOR, "--out", str(folder)]
        finding = self.cifargan(*command, limit=FLOOR * self.minute, log=self.summary / "floor.txt")
        return {**finding, "scores": scores_of(folder / "evaluation.json")}

    def bench(self, preset: str) -> dict[str, Any]:
        """Time a preset against plain PyTorch."""
        command = ["bench", preset, "--device", self.device, "--json", str(self.summary / f"bench_{preset}.json")]
        command += ["--rounds", "2"] if self.small else []
        log = self.summary / f"bench_{preset}.txt"
        return self.cifargan(*command, limit=BENCHMARKS[preset] * self.minute, log=log)

    def train(self, name: str) -> dict[str, Any]:
        """Train a recipe for its share of the time, then score it and draw its sheets."""
        directory, log = self.out / "runs" / name, self.summary / f"{name}.txt"
        limit = TRAININGS[name] * self.minute
        recipe = [f"experiment={name}", "resume=latest", f"hydra.run.dir={directory}", f"device={self.device}"]
        if self.data_root is None:
            recipe += ["data=digits", "data.image_size=32"]
        else:
            recipe += ["data=folder", f"data.root={self.data_root}"]
        recipe += ["data.splits=[train]", "trainer.steps=10000000", "trainer.log_every=50", "trainer.keep=1"]
        recipe += ["trainer.sample_every=1000", "trainer.checkpoint_every=1000"]
        recipe += [f"evaluator={EVALUATOR}", f"evaluator.samples={self.samples}", "evaluator.final_samples=0"]
        if self.small:
            recipe += [*narrow(name), "trainer.batch_size=16", "trainer.log_every=5"]
        # The first part measures the speed, so that a curve has the same number of points on any card.
        for seconds in (min(PROBE_SECONDS, limit / 4), limit):
            trained, rate = trained_seconds(directory)
            every = max(1, int(rate * limit / POINTS)) if trained else 10**9
            if trained < seconds - 2:
                ended = self.train_for(seconds - trained, [*recipe, f"evaluator.every={every}"], directory, log)
                if ended:
                    return {"ended": ended}
        return self.judge(name, directory, log)

    def train_for(self, seconds: float, overrides: list[str], directory: Path, log: Path) -> str | None:
        """Train until `seconds` have passed since the first log point, then stop; a checkpoint is left.

        Returns:
            Why the training ended by itself; None if it did not.

        Raises:
            OutOfTimeError: the call's time ended it.
        """
        if self.left < SPARE_SECONDS:
            raise OutOfTimeError
        points = len(json_lines(directory / "metrics.jsonl"))
        with log.open("a") as file:
            command = [sys.executable, "-m", "cifargan", "train", *overrides]
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment(), cwd=PROJECT)
        end: float | None = None
        while process.poll() is None:
            time.sleep(0.2)
            if end is None and len(json_lines(directory / "metrics.jsonl")) > points:
                end = time.monotonic() + seconds
            if self.left < SPARE_SECONDS / 2 or (end is not None and time.monotonic() > end):
                process.terminate()  # not SIGINT: a shell lets its background jobs ignore it
                try:
                    process.wait(GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        stopped = process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM, -signal.SIGKILL)
        if stopped and self.left < SPARE_SECONDS / 2:
            raise OutOfTimeError
        if stopped and any((directory / "checkpoints").glob("*")):
            return None
        words = [line for line in log.read_text().splitlines() if line.strip()]
        return f"exit {process.returncode}: {words[-1] if words else 'no output'}"

    def judge(self, name: str, directory: Path, log: Path) -> dict[str, Any]:
        """Score a run against its training images and draw sheets at two truncations."""
        step = json.loads((directory / "status.json").read_text())["step"]
        # The run ends at the step it has reached: only a finished run may be recorded as a result.
        self.cifargan("train", f"resume={directory}", f"trainer.steps={step}", limit=120, log=log)
        command = ["evaluate", str(directory), "--samples", str(self.samples), "--reference", "train"]
        finding = self.cifargan(*command, "--evaluator", EVALUATOR, limit=240, log=log)
        for truncation in ("1.0", "0.5"):
            folder = self.out / "sheets" / f"{name}-{truncation}"
            command = ["sample", str(directory), "--truncation", truncation, "--per-class", "10", "--out", str(folder)]
            self.cifargan(*command, limit=120, log=log)
            sheets = sorted(folder.glob("*overview*.png")) or sorted(
                folder.glob("*.png")
            )  # no overview without classes
            if sheets:
                shutil.copy(sheets[0], self.summary / f"{name}-truncation_{truncation}.png")
        for file in ("metrics.jsonl", "evaluation.json"):
            if (directory / file).exists():
                shutil.copy(directory / file, self.summary / f"{name}-{file}")
        seconds = round(trained_seconds(directory)[0])
        return {**finding, "step": step, "trained_s": seconds, "scores": scores_of(directory / "evaluation.json")}

    def report(self) -> dict[str, Any]:
        """Write the page that compares the runs: curves, scores, samples."""
        command = ["runs", "report", "--root", str(self.out / "runs"), "--out", str(self.summary / "report.html")]
        return self.cifargan(*command, limit=120, log=self.summary / "report.txt")

    def cifargan(self, *arguments: str, limit: float, log: Path) -> dict[str, Any]:
        """Run a command of the command line; see `call`."""
        return self.call("-m", "cifargan", *arguments, limit=limit, log=log)

    def call(self, *arguments: str, limit: float, log: Path) -> dict[str, Any]:
        """Run Python for at most `limit` seconds.

        Returns:
            The exit code, 124 if it took too long, and the seconds.

        Raises:
            OutOfTimeError: the call's time ended it.
        """
        began, left = time.monotonic(), self.left
        if left < 1:
            raise OutOfTimeError
        with log.open("a") as file:
            try:
                code = subprocess.run(
                    [sys.executable, *arguments],
                    stdout=file,
                    stderr=file,
                    timeout=min(limit, left),
                    env=environment(),
                    cwd=PROJECT,
                ).returncode
            except subprocess.TimeoutExpired:
                if left < limit:
                    raise OutOfTimeError from None
                code = TIMED_OUT
        return {"exit": code, "seconds": round(time.monotonic() - began, 1)}


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


def environment() -> dict[str, str]:
    """Environment variables under which Python finds this checkout's package."""
    path = os.pathsep.join(filter(None, [str(PROJECT / "src"), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def json_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file with one JSON object a line; a line cut short is left out."""
    found: list[dict[str, Any]] = []
    for line in file.read_text().splitlines() if file.exists() else []:
        with suppress(ValueError):
            found.append(json.loads(line))
    return found


def trained_seconds(directory: Path) -> tuple[float, float]:
    """Seconds of training up to the last log point, without breaks and evaluations; steps a second at that point."""
    seconds, before, rate = 0.0, 0, 0.0
    for line in json_lines(directory / "metrics.jsonl"):
        if line.get("speed/steps_per_s"):
            rate = line["speed/steps_per_s"]
            seconds += (line["step"] - before) / rate
            before = line["step"]
    return seconds, rate


def scores_of(file: Path) -> dict[str, float]:
    """The newest scores of all classes together in an evaluation.json, and their number of images."""
    try:
        records = json.loads(file.read_text())["records"]
    except (OSError, ValueError, KeyError):
        return {}
    whole = [record for record in records if record["class_name"] is None]
    return {key: value for record in whole for key, value in ((record["metric"], record["value"]), ("n", record["n"]))}


def machine() -> dict[str, Any]:
    """The device and the versions of this machine."""
    import torch

    from cifargan.runs.provenance import device_name, versions

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {"device": device_name(device), "cores": os.cpu_count(), "versions": versions()}


def main() -> None:
    """Read the command line and qualify."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=25.0, help="for all stages together (default: 25)")
    parser.add_argument("--leave-after", type=float, metavar="MINUTES", help="end this call earlier")
    parser.add_argument("--out", type=Path, default=Path("outputs/qualify"))
    parser.add_argument(
        "--data-root", type=Path, help="a folder with train/ and test/, each with a folder for each class"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"to score (default: {SAMPLES})")
    parser.add_argument("--small", action="store_true", help="narrow networks, few samples: to try the script")
    parser.add_argument("--only", metavar="A,B", help="train these recipes alone")
    Qualification(parser.parse_args()).run()


if __name__ == "__main__":
    sys.path.insert(0, str(PROJECT / "src"))
    main()
