"""Training that is killed at any moment resumes, and ends with the same bits as without the kills."""

import contextlib
import json
import os
import random
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any
from unittest.mock import patch

import pytest
import torch

from cifargan.runs.checkpoint import CheckpointStore, load
from cifargan.runs.directory import RunDirectory
from cifargan.training.step import GANStep

STEPS, EVERY, KILLS = 8, 2, 4
WORDS = (
    *("data=digits", "data.splits=[test]", "data.image_size=16", "device=cpu", "evaluator=none", "seed=3"),
    *("model=cdcgan", "model.generator.latent_dim=8", "model.generator.base_channels=4"),
    *("model.discriminator.base_channels=4", "regularizer=lecam", "augment=diffaugment", "trainer.speed=plain"),
    *("trainer.batch_size=4", "trainer.samples_per_class=1", "trainer.log_every=1", "trainer.sample_every=4"),
    *(f"trainer.steps={STEPS}", f"trainer.checkpoint_every={EVERY}", "trainer.loggers=[csv]", "resume=latest"),
)


def train(command: Callable[..., CompletedProcess[str]], name: str, *, kill_at: int | None = None) -> int:
    """Train in a new process, which kills itself at a moment that decides which files exist.

    Moments are the iterations, and each sync, rename and removal of a file; at a sync, half of the file is missing.

    Returns:
        The exit status; without `kill_at` the number of moments.
    """
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        moments = 0

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **settings: Any) -> Any:
                nonlocal moments
                moments += 1
                if moments == kill_at:
                    if function is fsync:
                        with contextlib.suppress(OSError):  # a folder is synced, too
                            os.ftruncate(arguments[0], os.fstat(arguments[0]).st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **settings)

            return call

        fsync = os.fsync
        code = 1
        try:
            torch.set_num_threads(1)
            targets: list[tuple[Any, str]] = [(os, "fsync"), (Path, "replace"), (Path, "unlink"), (GANStep, "iterate")]
            for owner, attribute in targets:
                patch.object(owner, attribute, counted(getattr(owner, attribute))).start()
            code = command("train", *WORDS, f"hydra.run.dir={name}").returncode
            os.write(writer, str(moments).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        found = pipe.read()
    if kill_at is not None:
        return os.waitstatus_to_exitcode(status)
    assert os.waitstatus_to_exitcode(status) == 0
    return int(found)


def result(run: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last state and the logged values, without times."""
    state = load(CheckpointStore(run / "checkpoints").find("last"))
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timeless = [{key: value for key, value in line.items() if "speed" not in key and key != "time"} for line in log]
    return {key: value for key, value in state.items() if key != "config"}, timeless


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_that_is_killed_again_and_again(
    command: Callable[..., CompletedProcess[str]], differences: Callable[[Any, Any], list[str]], tmp_path: Path
) -> None:
    moments = train(command, "whole")
    chance = random.Random(3)
    run, reached = RunDirectory(tmp_path / "killed"), 0
    for _ in range(KILLS):
        ended = train(command, "killed", kill_at=chance.randrange(1, 2 * moments // 3))
        states = [load(path) for path in CheckpointStore(run.checkpoints).steps()]  # none is damaged
        newest = max((state["step"] for state in states), default=0)
        assert newest >= reached  # nothing that was saved is lost
        reached = newest
        if ended == 0:  # it had fewer moments left
            assert reached == STEPS
            break
        assert ended == -signal.SIGKILL
        if run.holds_a_run() and run.status():
            assert run.status()["status"] == "interrupted"
    assert reached > 0
    train(command, "killed")
    (state, log), (other, other_log) = result(tmp_path / "whole"), result(tmp_path / "killed")
    assert differences(state, other) == []
    assert log == other_log
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    assert not list((tmp_path / "killed").rglob("*.partial"))
