"""Kills a short training as a machine does that is taken away, and compares its end with that of one left in peace.

    OMP_NUM_THREADS=1 python scripts/kill_drill.py [--kills 10] [--steps 400] [--seed 0] [SETTING=VALUE ...]

What `fault_drill.py` forks is here begun anew by `cifargan train`, so it takes any settings: trainer.compile=default, which
no forked process can do, or trainer.devices=2, of which all processes are killed at once. A life takes as long as Python
takes to import torch, and to compile what is not in its cache.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fault_drill import SETTINGS, different, scalars
from torch import Tensor

from cifargan.training.checkpoint import CheckpointStore, load

OWN = ["trainer.log_every=5", "trainer.checkpoint_every=20", "trainer.sample_every=200"]
LIMIT = 600.0  # seconds that one life may take


class Life:
    """A training in a process of its own, or several.

    Args:
        directory: of the run.
        overrides: all of them for a new run; for one that goes on, none but `resume`.
    """

    def __init__(self, directory: Path, overrides: list[str]) -> None:
        self.directory = directory
        self.ends = time.monotonic() + LIMIT
        with directory.with_suffix(".log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cifargan", "train", *overrides], stderr=log, start_new_session=True
            )

    def reach(self, step: int) -> bool:
        """Wait until a step is logged; whether it was before the training ended."""
        while reached(self.directory) < step:
            if self.process.poll() is not None:
                return False
            if time.monotonic() > self.ends:
                self.kill()
                raise SystemExit(f"{self.directory}: step {step} was not reached in {LIMIT:.0f} s")
            time.sleep(0.02)
        return True

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> None:
        """Wait for the end, which has to be a good one."""
        if self.process.wait(LIMIT) != 0:
            raise SystemExit(
                f"exit {self.process.returncode}: {self.directory.with_suffix('.log').read_text()[-2000:]}"
            )


def reached(directory: Path) -> int:
    """The last step that is logged in whole; 0 where there is none."""
    metrics = directory / "metrics.jsonl"
    whole = metrics.read_bytes().rpartition(b"\n")[0] if metrics.exists() else b""
    return int(whole.rpartition(b'{"step": ')[2].partition(b",")[0]) if whole else 0


def ended(directory: Path) -> dict[str, object]:
    """What a finished run has in its last checkpoint; its configuration knows the folder, and how it was begun."""
    state = load(CheckpointStore(directory / "checkpoints").find("last"))
    return {key: value for key, value in state.items() if key != "config"}


def count(node: object) -> int:
    """The tensors in a state."""
    if isinstance(node, dict | list | tuple):
        return sum(map(count, node.values() if isinstance(node, dict) else node))
    return int(isinstance(node, Tensor))


def main() -> int:
    """Run it; 1 if the killed run ended otherwise than the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=10, help="how often to kill -9 (default: 10)")
    parser.add_argument("--steps", type=int, default=400, help="how long the training is (default: 400)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: 0)")
    parser.add_argument("settings", nargs="*", metavar="SETTING=VALUE", help="as of cifargan train")
    options = parser.parse_args()
    chance = random.Random(options.seed)  # noqa: S311 - no secret
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cifargan_kills_") as folder:
        straight, killed = Path(folder, "straight"), Path(folder, "killed")
        fresh = [*SETTINGS, *OWN, f"trainer.steps={options.steps}", *options.settings]
        Life(straight, [*fresh, f"hydra.run.dir={straight}"]).finish()
        # Spread over the run, so that there is something left to do after the last.
        moments = sorted(chance.sample(range(1, options.steps), options.kills))
        kills, lost = 0, []
        for moment in moments:
            again = (killed / "provenance.json").exists()
            life = Life(killed, [f"resume={killed}"] if again else [*fresh, f"hydra.run.dir={killed}"])
            if not life.reach(moment):
                # It has ended by itself, which is wrong: there were steps left.
                life.finish()
                break
            time.sleep(chance.uniform(0, 0.2))
            life.kill()
            kills += 1
            at = max((int(load(path)["step"]) for path in CheckpointStore(killed / "checkpoints").steps()), default=0)
            lost.append(max(0, reached(killed) - at))
            print(f"killed after step {reached(killed)}; the newest checkpoint is of step {at}", flush=True)
        Life(killed, [f"resume={killed}"]).finish()
        wrong = different(ended(straight), ended(killed))
        if scalars(straight) != scalars(killed):
            wrong.append("metrics.jsonl")
        tensors = count(ended(straight))
    print(
        f"{kills} kills, at most {max(lost, default=0)} logged steps lost; of {tensors} tensors and all figures of the "
        f"last checkpoint, and metrics.jsonl, these differ: {', '.join(wrong) or 'none'}; "
        f"{time.monotonic() - began:.0f} s, seed {options.seed}"
    )
    return int(bool(wrong) or kills < options.kills)


if __name__ == "__main__":
    sys.exit(main())
