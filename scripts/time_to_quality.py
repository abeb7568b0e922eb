"""How long a recipe takes to reach a score: wall time, with the time spent on scoring counted apart.

    python scripts/time_to_quality.py --target 45 --seeds 0 1 2 \
        --variant plain trainer.speed=plain --variant ramp trainer.ema.decay=0.9999 trainer.ema.ramp=0.05 \
        -- experiment=biggan_lecam_diffaug evaluator.every=1000 evaluator.samples=10000

What stands after `--` holds for all; each --variant names what it changes, and `base`, which changes nothing, comes
first. Seeds are the outer loop, so that variants take turns. A run ends at the target or at `trainer.steps`. The final
evaluation is left out. Where the machine has other work, read the column of CPU time.
"""

import argparse
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import hydra
from omegaconf import OmegaConf

from cifargan.build.check import check
from cifargan.build.settings import plain
from cifargan.build.trainer import build_trainer
from cifargan.files import write_json
from cifargan.schema import conf_dir
from cifargan.training.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run: where it got, and what it took."""

    variant: str
    seed: int
    reached: bool
    step: int
    best: float | None
    training_seconds: float
    scoring_seconds: float
    cpu_seconds: float  # of training and scoring, all threads


def run(variant: str, overrides: list[str], seed: int, target: float, directory: RunDirectory) -> Outcome:
    """Train one variant until the target or its last step."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        wanted = [*overrides, f"seed={seed}", f"evaluator.target={target}", "evaluator.final_samples=0"]
        # Outside Hydra's own main there is no choice of groups to take the name from.
        config = OmegaConf.create(plain(hydra.compose("train", [f"name={variant}", *wanted])))
    check(config)
    directory.claim()
    trainer = build_trainer(config, directory)
    started, cpu = time.monotonic(), time.process_time()
    result = trainer.fit()
    seconds = time.monotonic() - started
    return Outcome(
        variant=variant,
        seed=seed,
        reached=trainer.scores.reached,
        step=result.step,
        best=result.best_score,
        training_seconds=seconds - trainer.evaluation_seconds,
        scoring_seconds=trainer.evaluation_seconds,
        cpu_seconds=time.process_time() - cpu,
    )


def table(outcomes: list[Outcome]) -> str:
    """A line for each run."""
    lines = [
        f"{'variant':12} {'seed':>4} {'reached':>7} {'step':>8} {'best':>8} {'training':>9} {'scoring':>8} {'CPU':>8}"
    ]
    for o in outcomes:
        best = "-" if o.best is None else f"{o.best:.4g}"
        lines.append(
            f"{o.variant:12} {o.seed:>4} {'yes' if o.reached else 'no':>7} {o.step:>8,} {best:>8} "
            f"{o.training_seconds:>7.0f} s {o.scoring_seconds:>6.0f} s {o.cpu_seconds:>6.0f} s"
        )
    return "\n".join(lines)


def main() -> None:
    """Run every variant with every seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=float, required=True, help="the score, lower is better")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variant", nargs="+", action="append", default=[], metavar=("NAME", "OVERRIDE"))
    parser.add_argument("--out", type=Path, default=Path("outputs/time_to_quality"))
    parser.add_argument("overrides", nargs="*", help="what holds for all, after --")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = options.out / time.strftime("%Y-%m-%d_%H-%M-%S")
    variants = {"base": [], **{name: overrides for name, *overrides in options.variant}}
    outcomes: list[Outcome] = []
    for seed in options.seeds:
        for variant, changes in variants.items():
            directory = RunDirectory(folder / f"{variant}_{seed}")
            outcomes.append(run(variant, [*options.overrides, *changes], seed, options.target, directory))
            # After each, so that an hour's work is not lost with the next.
            settings = {"target": options.target, "overrides": options.overrides, "variants": variants}
            write_json(folder / "outcomes.json", {**settings, "outcomes": [asdict(outcome) for outcome in outcomes]})
            print(table(outcomes), flush=True)


if __name__ == "__main__":
    main()
