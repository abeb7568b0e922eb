"""Breaks short trainings in every way that a machine can, and checks that nothing but the steps since is lost.

    OMP_NUM_THREADS=1 python scripts/fault_drill.py [--kills 200] [--seed 0] [--out drill.json]

One process imports everything and reads the data; each life of a run is a fork of it, so that a life takes well under a
second. A run is killed with SIGKILL at random moments, half of them while a checkpoint is being written, begun again
each time, and has to end in the very bits of a run that nobody disturbed. Then comes every other fault, once.
"""

import argparse
import errno
import json
import logging
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from cifargan.build import trainer
from cifargan.build.parts import build_data
from cifargan.build.settings import plain
from cifargan.cli.errors import report
from cifargan.cli.run_log import RunLog
from cifargan.cli.train import claim_and_train
from cifargan.data.stream import ImageStream
from cifargan.evaluation.evaluator import NoEvaluator, Stop, never
from cifargan.evaluation.feature_stats import StoppedError
from cifargan.evaluation.records import Record
from cifargan.files import write_atomically
from cifargan.objectives.regularizers import LeCam
from cifargan.sampling import Sampler
from cifargan.schema import conf_dir
from cifargan.training import checkpoint, run_directory
from cifargan.training.checkpoint import CheckpointStore, load
from cifargan.training.ema import WeightAverage
from cifargan.training.game import Game
from cifargan.training.run_directory import RunDirectory

STEPS, EVERY = 24, 2
KILLS_A_RUN = 8
LIMIT = 60.0  # seconds that one life may take
SETTINGS = [
    *("name=drill", "data=digits", "data.splits=[test]", "data.image_size=16", 'data.classes=["0","1"]', "seed=3"),
    *("device=cpu", "precision=fp32", "evaluator=none", "model=cdcgan", "augment=diffaugment", "regularizer=lecam"),
    *("model.generator.base_channels=4", "model.discriminator.base_channels=4", "model.generator.latent_dim=8"),
    *("trainer.speed=plain", "trainer.batch_size=4", "trainer.ema.decay=0.9", f"trainer.steps={STEPS}"),
    *("trainer.log_every=1", f"trainer.checkpoint_every={EVERY}", "trainer.sample_every=20"),
    "trainer.samples_per_class=1",
]
Act = Callable[[], Any]


@dataclass
class Row:
    """What came of one kind of fault."""

    fault: str
    tried: int = 0
    survived: int = 0
    lost: list[int] = field(default_factory=list)  # steps, of each try
    notes: list[str] = field(default_factory=list)

    def add(self, survived: bool, lost: int = 0, note: str = "") -> None:
        """Count one try."""
        self.tried += 1
        self.survived += survived
        self.lost.append(lost)
        if note and not survived:
            self.notes.append(note)

    def cells(self) -> list[str]:
        """The row of the table."""
        mean = sum(self.lost) / max(len(self.lost), 1)
        return [self.fault, str(self.tried), str(self.survived), f"{mean:.1f} / {max(self.lost, default=0)}"]


@dataclass(frozen=True)
class Life:
    """How one process ended.

    Attributes:
        code: its exit code; minus the signal that killed it.
        step: the last step that it began.
        in_write: whether it died while a checkpoint was being written.
        said: what it wrote on stderr.
    """

    code: int
    step: int
    in_write: bool
    said: str


class Drill:
    """A warm process that lives many short lives by forking.

    Args:
        folder: where the runs lie.
        seed: of the moments of the kills.
    """

    def __init__(self, folder: Path, *, seed: int) -> None:
        # A process that has threads must not be forked.
        torch.set_num_threads(1)
        self.folder = folder
        self.chance = random.Random(seed)  # noqa: S311 - no secret
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
            self.composed = OmegaConf.create(plain(hydra.compose("train", SETTINGS)))
        self.images = build_data(self.composed.data)
        self.rows: list[Row] = []
        self.write_seconds = 0.01
        self.lives = 0

    def config(self, directory: Path, *overrides: str, new: bool) -> DictConfig:
        """What a life is about."""
        own = OmegaConf.from_dotlist([*overrides, *([] if new else [f"resume={directory}"])])
        return OmegaConf.create(plain(OmegaConf.merge(self.composed, own)))  # type: ignore[arg-type]

    def live(
        self,
        directory: Path,
        *overrides: str,
        prepare: Act = lambda: None,
        kill: Callable[["Watch"], None] = lambda _: None,
    ) -> Life:
        """One process: starts the run, or goes on with it, until it ends or is killed.

        Args:
            directory: of the run.
            overrides: of settings.
            prepare: what is broken in the process before it trains.
            kill: waits for a moment and kills it; returns at once to let it live.
        """
        new = not RunDirectory(directory).holds_a_run()
        reading, writing = os.pipe()
        self.lives += 1
        words = self.folder / f"stderr_{self.lives}"
        words.touch()  # a life may end before it says a word
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            self._child(directory, self.config(directory, *overrides, new=new), writing, words, prepare)
        os.close(writing)
        watch = Watch(pid, reading)
        try:
            kill(watch)
            code = watch.wait()
        finally:
            os.close(reading)
        return Life(code, watch.step, watch.in_write, words.read_text())

    def _child(self, directory: Path, config: DictConfig, pipe: int, words: Path, prepare: Act) -> None:
        """Train, and never return."""
        code = 1
        try:
            os.dup2(os.open(words, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
            write, iterate = write_atomically, Game.iterate

            def announced(path: Path, content: Any) -> None:
                os.write(pipe, b"W")
                write(path, content)
                os.write(pipe, b"w")

            def counted(game: Game) -> dict[str, Tensor]:
                os.write(pipe, b"S" + (game.step + 1).to_bytes(4, "big"))
                return iterate(game)

            with (
                patch.object(trainer, "build_data", lambda _: self.images),
                patch.object(checkpoint, "write_atomically", announced),
                patch.object(Game, "iterate", counted),
                patch.object(run_directory, "git_state", lambda _: None),
                RunLog(directory / "train.log") as run_log,
            ):
                try:
                    prepare()
                    claim_and_train(config, RunDirectory(directory), [], ["drill"], run_log)
                    code = 0
                except (Exception, KeyboardInterrupt) as error:
                    code = report(error)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    # Looking

    def state(self, directory: Path) -> dict[str, Any]:
        """The newest checkpoint of a run but for its configuration, which knows the folder."""
        state = load(CheckpointStore(directory / "checkpoints").find("last"))
        return {key: value for key, value in state.items() if key != "config"}

    def newest(self, directory: Path) -> int:
        """The step of the newest whole checkpoint; 0 where there is none. Every one there is has to be whole."""
        steps = [int(load(path)["step"]) for path in CheckpointStore(directory / "checkpoints").steps()]
        return max(steps, default=0)

    def same(self, one: Path, other: Path) -> list[str]:
        """At which places two finished runs differ."""
        found = different(self.state(one), self.state(other))
        if scalars(one) != scalars(other):
            found.append("metrics.jsonl")
        return found

    def row(self, fault: str) -> Row:
        """A new line of the table."""
        row = Row(fault)
        self.rows.append(row)
        return row

    def went_back_to(self, directory: Path) -> int:
        """The step of a run's last rollback."""
        sessions = RunDirectory(directory).read_json("provenance.json")["sessions"]
        return int(sessions[-1]["events"][-1]["to"])

    # Killing

    def time_writes(self, watch: "Watch") -> None:
        """Take the time that the writing of a checkpoint takes."""
        times = []
        while watch.until(b"W"):
            began = time.monotonic()
            watch.until(b"w")
            times.append(time.monotonic() - began)
        self.write_seconds = sorted(times)[len(times) // 2]

    def kills(self, number: int, straight: Path) -> None:
        """SIGKILL at so many moments, half of them inside the writing of a checkpoint."""
        anywhere, writing = self.row("kill -9 at a random moment"), self.row("kill -9 while a checkpoint is written")
        done, run, half_written = 0, 0, 0
        while done < number:
            directory = self.folder / f"killed_{run}"
            run += 1
            before = 0
            for _ in range(min(KILLS_A_RUN, number - done)):
                row, kill = (writing, self._in_a_write) if done % 2 else (anywhere, self._at_any_time)
                life = self.live(directory, kill=kill)
                done += 1
                partial = list((directory / "checkpoints").glob(".*.partial"))
                half_written += bool(partial)
                good, note = True, ""
                try:
                    after = self.newest(directory)
                except Exception as error:
                    after, good, note = before, False, str(error)
                status = RunDirectory(directory).status().get("status")
                if life.code == -signal.SIGKILL:
                    good = good and after >= before and status in ("interrupted", None, "finished")
                else:
                    good = good and life.code == 0
                note = note or f"exit {life.code}, step {before} to {after}, {status}: {life.said[-300:]}"
                row.add(good, max(0, life.step - 1 - after), note)
                before = after
                if status == "finished":
                    break
            life = self.live(directory)
            wrong = self.same(straight, directory) if life.code == 0 else [life.said[-300:]]
            for row in (anywhere, writing):
                if wrong:
                    row.survived -= 1
                    row.notes.append(f"{directory.name} ended otherwise: {wrong[:3]}")
            shutil.rmtree(directory)
        print(f"{done} kills in {run} runs; {half_written} left a half-written checkpoint behind", flush=True)

    def _at_any_time(self, watch: "Watch") -> None:
        wait = self.chance.uniform(0, 1.0)
        if self.chance.random() < 0.8:
            # Most of a life's beginning is the building of networks: there is more to break later.
            watch.until(b"S")
        watch.sleep(wait * 0.7)
        watch.kill()

    def _in_a_write(self, watch: "Watch") -> None:
        for _ in range(self.chance.randrange(1, 4)):
            if not watch.until(b"W"):
                return
        watch.sleep(self.chance.uniform(0, 1.1 * self.write_seconds))
        watch.kill()


class Watch:
    """Listens to a child, and kills it.

    Args:
        pid: of the child.
        pipe: what it announces itself by: `S` and a step, `W` and `w` around each writing of a checkpoint.
    """

    def __init__(self, pid: int, pipe: int) -> None:
        self.pid = pid
        self.pipe = pipe
        self.step = 0
        self.in_write = False
        self.ended = False
        self.deadline = time.monotonic() + LIMIT

    def until(self, mark: bytes) -> bool:
        """Listen until the next such mark; whether it came."""
        while (found := self._next(self.deadline)) is not None:
            if found == mark:
                return True
        return False

    def sleep(self, seconds: float) -> None:
        """Listen for so long."""
        end = time.monotonic() + seconds
        while self._next(end) is not None:
            pass

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code, minus the signal for one that was killed."""
        while self._next(self.deadline) is not None:
            pass
        if not self.ended:
            self.kill()
        _, status = os.waitpid(self.pid, 0)
        while self._next(0.0) is not None:
            pass
        return os.waitstatus_to_exitcode(status)

    def _next(self, end: float) -> bytes | None:
        """One mark; None when the time is over or the child has ended."""
        if self.ended:
            return None
        ready, _, _ = select.select([self.pipe], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return None
        mark = os.read(self.pipe, 1)
        if not mark:
            self.ended = True
            return None
        if mark == b"S":
            self.step = int.from_bytes(os.read(self.pipe, 4), "big")
        else:
            self.in_write = mark == b"W"
        return mark


def different(a: Any, b: Any, where: str = "") -> list[str]:
    """Every place at which two states are not the same bits."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [line for key in a for line in different(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [line for i, pair in enumerate(zip(a, b, strict=True)) for line in different(*pair, f"{where}/{i}")]
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    return [] if type(a) is type(b) and a == b else [where]


def scalars(directory: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time" and not k.startswith("speed/")} for line in lines]


def at_step(step: int, act: Act) -> None:
    """Have something happen before a step begins, once."""
    iterate, due = Game.iterate, [True]

    def wrapped(game: Game) -> dict[str, Tensor]:
        if game.step == step - 1 and due[0]:
            due[0] = False
            act()
        return iterate(game)

    Game.iterate = wrapped  # type: ignore[method-assign, assignment]


@contextmanager
def started(drill: Drill, name: str, step: int) -> Iterator[Path]:
    """A run that was killed when it had written checkpoints to `step`; removed afterwards."""
    directory = drill.folder / name

    def kill(watch: Watch) -> None:
        while watch.step <= step and watch.until(b"S"):
            pass
        watch.kill()

    drill.live(directory, "trainer.keep=9", kill=kill)
    yield directory
    shutil.rmtree(directory)


# Every other fault


class Slow(NoEvaluator):
    """Takes its time, finds nothing, and can be stopped."""

    every = 4

    def evaluate(self, sampler: Sampler, *, step: int, stop: Stop = never) -> list[Record]:  # noqa: ARG002
        """No scores."""
        sampler.sample(4, seed=1)
        for _ in range(40):
            if stop():
                raise StoppedError("scoring: stopped")
            time.sleep(0.01)
        return []


def damages(drill: Drill, straight: Path) -> None:
    """A newest checkpoint whose bytes are no longer those that were written."""

    def truncated(content: bytearray) -> bytes:
        return bytes(content[: drill.chance.randrange(1, len(content))])

    def flipped(content: bytearray) -> bytes:
        content[drill.chance.randrange(len(content))] ^= 1 << drill.chance.randrange(8)
        return bytes(content)

    kinds = {"cut short": (truncated, 5), "with one bit flipped": (flipped, 5), "of no length": (lambda _: b"", 1)}
    for kind, (damage, times) in kinds.items():
        row = drill.row(f"newest checkpoint {kind}")
        for _ in range(times):
            with started(drill, "damaged", drill.chance.randrange(6, STEPS - 4)) as directory:
                newest, before = CheckpointStore(directory / "checkpoints").steps()[-1:-3:-1]
                lost = int(newest.stem[5:]) - int(before.stem[5:])
                newest.write_bytes(damage(bytearray(newest.read_bytes())))
                life = drill.live(directory)
                told = (
                    f"{newest} is damaged" in life.said and f"going on from step {int(before.stem[5:])} " in life.said
                )
                fine = life.code == 0 and told and not drill.same(straight, directory)
                row.add(fine, lost, f"exit {life.code}: {life.said[-300:]}")


def poisoned(step: int) -> Act:
    """Images that are no numbers, in one step."""

    def prepare() -> None:
        take = ImageStream.take
        game_step = [0]
        at_step(step, lambda: game_step.__setitem__(0, 1))

        def wrapped(stream: ImageStream) -> tuple[Tensor, Tensor]:
            x, y = take(stream)
            if game_step[0]:
                game_step[0] = 0
                x = x * torch.nan
            return x, y

        ImageStream.take = wrapped  # type: ignore[method-assign, assignment]

    return prepare


def broken_weight(step: int) -> Act:
    """A weight that the last update of a step made infinite."""

    def prepare() -> None:
        update, game_step = WeightAverage.update, [0]
        at_step(step, lambda: game_step.__setitem__(0, 1))

        def wrapped(average: WeightAverage) -> None:
            update(average)
            if game_step[0]:
                game_step[0] = 0
                next(average.live.parameters()).data.fill_(torch.inf)

        WeightAverage.update = wrapped  # type: ignore[method-assign, assignment]

    return prepare


def divergence(drill: Drill) -> None:
    """Numbers that stop being numbers."""
    for kind, broken in (("loss", poisoned), ("weight", broken_weight)):
        row = drill.row(f"{kind} not finite, on_divergence=stop")
        directory = drill.folder / f"stop_{kind}"
        life = drill.live(directory, "trainer.log_every=5", prepare=broken(13))
        state = drill.state(directory)
        whole = all(value.isfinite().all() for part in ("generator", "discriminator") for value in state[part].values())
        told = "the run has diverged; the last good checkpoint is" in life.said
        fine = life.code == 2 and whole and told and RunDirectory(directory).status()["status"] == "diverged"
        row.add(fine, 12 - state["step"], life.said[-300:])

        row = drill.row(f"{kind} not finite, on_divergence=rollback")
        directory = drill.folder / f"rollback_{kind}"
        life = drill.live(directory, "trainer.on_divergence=rollback", prepare=broken(13))
        status = RunDirectory(directory).status()
        wanted = {"status": "finished", "step": STEPS, "rollbacks": 1, "rate_scale": 0.5}
        row.add(life.code == 0 and wanted.items() <= status.items(), 0, f"{status}: {life.said[-300:]}")
        row.lost[-1] = 12 - drill.went_back_to(directory)


def memory(drill: Drill) -> None:
    """Memory that runs out in the middle of an update."""

    def in_passes() -> None:
        due = [False]
        at_step(13, lambda: due.__setitem__(0, True))
        forward = LeCam.forward

        def wrapped(regularizer: LeCam, *arguments: Any) -> Any:
            result = forward(regularizer, *arguments)
            if due[0]:
                due[0] = False
                raise torch.OutOfMemoryError("CUDA out of memory")
            return result

        LeCam.forward = wrapped  # type: ignore[method-assign, assignment]

    def in_update() -> None:
        due = [False]
        at_step(14, lambda: due.__setitem__(0, True))
        step = torch.optim.Adam.step

        def wrapped(optimizer: torch.optim.Adam, *arguments: Any) -> Any:
            result = step(optimizer, *arguments)
            if due[0]:
                due[0] = False
                raise torch.OutOfMemoryError("CUDA out of memory")
            return result

        torch.optim.Adam.step = wrapped  # type: ignore[method-assign, assignment]

    for kind, prepare in (("passes", in_passes), ("update of the weights", in_update)):
        row = drill.row(f"out of memory in the {kind}, accumulate=auto")
        directory = drill.folder / f"memory_{kind.split()[0]}"
        life = drill.live(directory, "trainer.accumulate=auto", prepare=prepare)
        status = RunDirectory(directory).status()
        fine = life.code == 0 and {"status": "finished", "step": STEPS, "accumulate": 2}.items() <= status.items()
        row.add(fine, 13 - 12 if "back to step 12" in life.said else 0, f"{status}: {life.said[-300:]}")


def files(drill: Drill, straight: Path) -> None:
    """File systems that refuse."""

    def for_a_while(broken: Act, mended: Act) -> Act:
        def prepare() -> None:
            at_step(9, broken)
            at_step(16, mended)

        return prepare

    def error(code: int) -> Callable[..., Any]:
        def fail(*_: Any, **__: Any) -> None:
            raise OSError(code, os.strerror(code))

        return fail

    sync, opened = os.fsync, Path.open

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def read_only(path: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if set(mode) & set("wa+"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, mode, *arguments, **named)

    kinds = {
        "no file may grow beyond 16 kB, for 7 steps": (lambda: limit(16_000), lambda: limit(-1)),
        "fsync says: input/output error, for 7 steps": (
            lambda: setattr(os, "fsync", error(errno.EIO)),
            lambda: setattr(os, "fsync", sync),
        ),
        "read-only file system, for 7 steps": (
            lambda: setattr(Path, "open", read_only),
            lambda: setattr(Path, "open", opened),
        ),
    }
    for kind, (broken, mended) in kinds.items():
        row = drill.row(kind)
        directory = drill.folder / "disk"
        life = drill.live(directory, prepare=for_a_while(broken, mended))
        wrong = drill.same(straight, directory) if life.code == 0 else ["exit"]
        fine = life.code == 0 and not wrong and "training goes on" in life.said and "Traceback" not in life.said
        row.add(fine, 0, f"exit {life.code} {wrong}: {life.said[-900:]}")
        shutil.rmtree(directory)

    row = drill.row("disk full at the last checkpoint")
    directory = drill.folder / "last"
    life = drill.live(directory, prepare=lambda: at_step(STEPS, lambda: setattr(os, "fsync", error(errno.ENOSPC))))
    told = f"the last good checkpoint is {directory}/checkpoints/step_{STEPS - EVERY:09d}.pt" in life.said
    again = drill.live(directory)
    fine = life.code == 2 and told and again.code == 0 and not drill.same(straight, directory)
    row.add(fine, EVERY, life.said[-300:])

    row = drill.row("run directory removed")
    directory = drill.folder / "removed"
    life = drill.live(directory, prepare=lambda: at_step(13, lambda: shutil.rmtree(directory)))
    again = drill.live(directory)
    fine = life.code == 0 and drill.newest(directory) == STEPS and again.code == 0 and "is finished" in again.said
    fine = fine and not different(drill.state(straight), drill.state(directory))
    row.add(fine, 0, life.said[-300:] + again.said[-300:])


def signals(drill: Drill, straight: Path) -> None:
    """Being asked to stop."""

    def slow() -> None:
        patch.object(trainer, "build_evaluator", lambda *_, **__: Slow()).start()

    def at_random(number: int) -> Callable[[Watch], None]:
        def kill(watch: Watch) -> None:
            watch.until(b"S")
            watch.sleep(drill.chance.uniform(0, 0.3))
            watch.kill(number)

        return kill

    def in_a_write(watch: Watch) -> None:
        watch.until(b"W")
        watch.kill(signal.SIGTERM)

    def until_an_evaluation(watch: Watch) -> None:
        while watch.step < 8 and watch.until(b"S"):
            pass
        watch.sleep(0.2)

    def in_an_evaluation(watch: Watch) -> None:
        until_an_evaluation(watch)
        watch.kill(signal.SIGTERM)

    kinds: dict[str, tuple[Callable[[Watch], None], Act, int, int]] = {
        "SIGTERM": (at_random(signal.SIGTERM), lambda: None, 143, 5),
        "Ctrl-C": (at_random(signal.SIGINT), lambda: None, 130, 5),
        "SIGTERM while a checkpoint is written": (in_a_write, lambda: None, 143, 3),
        "SIGTERM during an evaluation": (in_an_evaluation, slow, 143, 3),
    }
    for kind, (kill, prepare, code, times) in kinds.items():
        row = drill.row(kind)
        for _ in range(times):
            directory = drill.folder / "signal"
            life = drill.live(directory, prepare=prepare, kill=kill)
            step = drill.newest(directory)
            status = RunDirectory(directory).status()
            fine = life.code == code and "checkpoint written; go on with" in life.said and step == status["step"]
            fine = fine and drill.live(directory).code == 0 and not drill.same(straight, directory)
            row.add(fine, life.step - step, f"exit {life.code}: {life.said[-300:]}")
            shutil.rmtree(directory)

    def twice(watch: Watch) -> None:
        # However soon the second comes, or whether the two become one on their way: the process ends as by Ctrl-C.
        until_an_evaluation(watch)
        watch.kill(signal.SIGINT)
        watch.sleep(0.005)
        watch.kill(signal.SIGINT)

    row = drill.row("Ctrl-C twice: stop now")
    directory = drill.folder / "twice"
    life = drill.live(directory, prepare=slow, kill=twice)
    status, before = RunDirectory(directory).status(), drill.newest(directory)
    fine = life.code == 130 and status["status"] == "interrupted"
    fine = fine and drill.live(directory).code == 0 and not drill.same(straight, directory)
    row.add(fine, max(0, life.step - before), f"exit {life.code} {status}: {life.said[-300:]}")


def two_at_once(drill: Drill, straight: Path) -> None:
    """A second process on the same run."""
    row = drill.row("second process on the same run")
    directory = drill.folder / "shared"
    second: list[Life] = []

    def meanwhile(watch: Watch) -> None:
        watch.until(b"w")
        watch.kill(signal.SIGSTOP)  # it keeps its lock, and waits
        second.append(drill.live(directory))
        watch.kill(signal.SIGCONT)

    first = drill.live(directory, kill=meanwhile)
    refused = second[0].code == 2 and "is being trained by another process" in second[0].said
    row.add(refused and first.code == 0 and not drill.same(straight, directory), 0, second[0].said[-300:])


def main() -> int:
    """Run the drill, print its table; 1 if anything was not survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200, help="how often to kill -9 (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: 0)")
    parser.add_argument("--out", type=Path, help="a JSON file for the table")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cifargan_drill_") as folder:
        drill = Drill(Path(folder), seed=options.seed)
        straight = drill.folder / "straight"
        life = drill.live(straight, kill=drill.time_writes)
        if life.code != 0:
            print(life.said)
            return 1
        drill.kills(options.kills, straight)
        damages(drill, straight)
        divergence(drill)
        memory(drill)
        files(drill, straight)
        signals(drill, straight)
        two_at_once(drill, straight)
    table = [["fault", "tried", "survived", "steps lost, mean / most"], *(row.cells() for row in drill.rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
        if line is table[0]:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    for row in drill.rows:
        for note in row.notes:
            print(f"NOT SURVIVED: {row.fault}: {note}")
    seconds = time.monotonic() - began
    print(f"{seconds:.0f} s, {drill.lives} processes, seed {options.seed}")
    if options.out:
        rows = [dict(zip(table[0], line, strict=True)) for line in table[1:]]
        options.out.write_text(json.dumps({"seed": options.seed, "seconds": seconds, "rows": rows}, indent=2) + "\n")
    return int(any(row.survived < row.tried for row in drill.rows))


if __name__ == "__main__":
    sys.exit(main())
