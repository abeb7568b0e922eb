"""`cifargan bench`: how fast training is here, against plain PyTorch that computes the same."""

import argparse
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from cifargan.bench.hotspots import LISTED, Hotspot
from cifargan.bench.memory import GB, Memory, which_batch_fits
from cifargan.bench.presets import compose, narrowed
from cifargan.bench.reference import presets
from cifargan.bench.run import Race, Report, Result, machine, passed_gate, race
from cifargan.bench.variants import has_bf16_units, variants
from cifargan.cli.options import Parser, count
from cifargan.cli.tables import aligned
from cifargan.config import plain
from cifargan.device import select_device
from cifargan.errors import UserError
from cifargan.files import write_json

CPU_WIDTH = 32
CPU_BATCH = 8
ROUNDS = 5
LONGEST = 60  # letters of a kernel's name that are shown


def parser() -> argparse.ArgumentParser:
    """The options of `cifargan bench`."""
    p = Parser(
        prog="cifargan bench",
        usage="cifargan bench [PRESET] [options]",
        description="Times a training iteration against plain PyTorch, after checking that both compute the same.\n"
        "On a CPU one thread and narrow networks; on a GPU the preset as it is. A table, and JSON.",
        epilog="examples:\n"
        "  cifargan bench                                    BigGAN on what this machine has\n"
        "  cifargan bench biggan_original --device cpu\n"
        "  cifargan bench biggan --memory                    which batch fits 4, 8 and 16 GB, too",
    )
    p.add_argument("preset", nargs="?", default="biggan", metavar="PRESET", help="an experiment (default: biggan)")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    p.add_argument("--batch-size", type=count, metavar="N", help=f"default: the preset's; on a CPU {CPU_BATCH}")
    p.add_argument("--width", type=count, metavar="N", help=f"of the generator (default: own; on a CPU {CPU_WIDTH})")
    p.add_argument("--rounds", type=count, metavar="N", default=ROUNDS, help=f"turns for each (default: {ROUNDS})")
    p.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        metavar="NAME",
        help="fp32: without bf16; bf16: with it; auto: with it where the device computes in it",
    )
    p.add_argument("--compile", action="store_true", help="torch.compile takes part too; it takes minutes")
    p.add_argument("--memory", action="store_true", help="and which batch fits: full width, measured with CUDA")
    p.add_argument("--only-gate", action="store_true", help="check that both compute the same, and time nothing")
    p.add_argument("--json", type=Path, metavar="FILE", help="default: outputs/bench/<preset>_<device>_<time>.json")
    return p


def run(arguments: list[str]) -> int:
    """Check, time, tell."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = parser().parse_args(arguments)
    device = select_device(options.device)
    if device.type == "mps":
        raise UserError("cifargan bench has no clock for MPS: choose --device cpu")
    comparable = options.preset in presets()
    full = compose(options.preset, f"device={device}", "precision=fp32", "trainer.accumulate=1")
    if not comparable and not options.memory:
        raise UserError(
            f"cifargan bench {options.preset}: the plain PyTorch reference cannot train it, so there is nothing to race "
            f"against; add --memory for what fits, or choose from {', '.join(presets())}"
        )
    config = scaled(full, options, device)
    before = torch.get_rng_state()
    checks = passed_gate(full) if comparable else []
    report = Report(preset=options.preset, config=plain(config), machine=machine(device), checks=checks)
    bf16 = options.precision == "bf16" or (options.precision == "auto" and has_bf16_units(device))
    if comparable and not options.only_gate:
        contestants = variants(device, bf16=bf16, compiled=options.compile)
        report = replace(report, race=race(contestants, config, device=device, rounds=options.rounds))
    if options.memory:
        full.precision = "bf16" if bf16 else "fp32"
        report = replace(report, memory=which_batch_fits(full, device))
    torch.set_rng_state(before)
    print("\n".join(lines_of(report)))
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    path = options.json or Path("outputs", "bench", f"{options.preset}_{device.type}_{stamp}.json")
    write_json(path, report.record())
    print(path)
    return 0


def scaled(config: DictConfig, options: argparse.Namespace, device: torch.device) -> DictConfig:
    """The preset at the width and the batch size to time it at."""
    cpu = device.type == "cpu"
    config = narrowed(config, options.width or (CPU_WIDTH if cpu else None))
    config.trainer.batch_size = options.batch_size or (CPU_BATCH if cpu else config.trainer.batch_size)
    return config


def lines_of(report: Report) -> list[str]:
    """What a person is told."""
    trainer, parts = report.config["trainer"], report.config["model"]
    where, found = report.machine, report.machine["versions"]
    widths = [_width(parts[part]) for part in ("generator", "discriminator")]
    lines = [
        f"preset     {report.preset}: generator {widths[0]} wide, discriminator {widths[1]}, batch {trainer['batch_size']}, "
        f"{trainer['d_steps']} + 1 updates an iteration",
        f"machine    {where['device']}, {where['cpu']}, threads: {where['threads']}, torch {found['torch']}, "
        f"python {found['python']}, cifargan {found['cifargan']}",
    ]
    if report.checks:
        lines += ["", "gate       cifargan, all switches on, against the reference: the same numbers"]
        lines += aligned(
            [[f"  {check.name}", f"{check.error:.1e}", f"of {check.limit:.0e}"] for check in report.checks]
        )
    if report.race:
        lines += ["", *race_lines(report.race), "", *hotspot_lines(report.race)]
    if report.memory:
        lines += ["", *memory_lines(report.memory)]
    return [*lines, ""]


def race_lines(race: Race) -> list[str]:
    """One row for each contestant, and what the rates are shares of."""
    cuda = race.results[0].peak_bytes is not None
    heads = ["", "it/s", "images/s", "x baseline", "(spread)", "TFLOP/s" if cuda else "GFLOP/s", "of roof"]
    heads += ["kernels", "launches"] if cuda else ["operators"]
    heads += ["host waits", *(["peak GB"] if cuda else []), "start s"]
    lines = aligned([heads, *(_row(result, cuda=cuda) for result in race.results)])
    for name in race.left_out:
        lines.append(f"{name}: left out, it did not fit into memory beside the others")
    lines += [f"{r.name}: its rounds could not be replayed from a graph" for r in race.results if r.replayed is False]
    unit, size = ("TFLOP/s", 1e12) if cuda else ("GFLOP/s", 1e9)
    roof = race.roofline
    peaks = ", ".join(f"{rate / size:,.0f} {unit} in {name}" for name, rate in roof.flops.items())
    arithmetic, copies = race.flops / max(roof.flops.values()), race.traffic / roof.bytes
    return [
        *lines,
        f"roof: {peaks}, copies {roof.bytes / 1e9:,.0f} GB/s, measured in this run",
        f"an iteration in the textbook order: {race.flops / 1e9:,.2f} GFLOP, {1e3 * arithmetic:,.2f} ms at the roof; "
        f"{race.traffic / 1e9:,.2f} GB in and out of its operators, {1e3 * copies:,.2f} ms at that of copies",
    ]


def hotspot_lines(race: Race) -> list[str]:
    """Where the time of the fastest goes."""
    total = sum(spot.seconds for spot in race.hotspots)
    shown = race.hotspots[:LISTED]
    rest = Hotspot(
        name=f"{len(race.hotspots) - len(shown)} others",
        calls=sum(spot.calls for spot in race.hotspots[LISTED:]),
        seconds=sum(spot.seconds for spot in race.hotspots[LISTED:]),
    )
    rows = [
        [
            f"  {spot.name[:LONGEST]}",
            f"{spot.calls:,.0f}",
            f"{1e3 * spot.seconds:,.2f} ms",
            f"{spot.seconds / total:.0%}",
        ]
        for spot in [*shown, *([rest] if rest.calls else [])]
    ]
    seconds = next(1 / r.timing.iterations_per_second for r in race.results if r.name == race.watched)
    return [
        f"where the time of '{race.watched}' goes: {1e3 * total:,.2f} ms of work in an iteration of {1e3 * seconds:,.2f} ms",
        *aligned(rows),
    ]


def _row(result: Result, *, cuda: bool) -> list[str]:
    ratio, asked = result.timing.ratio, result.profile
    cells = [
        result.name,
        f"{result.timing.iterations_per_second:.2f}",
        f"{result.images_per_second:,.0f}",
        f"{ratio.median:.2f}",
        f"({ratio.low:.2f} to {ratio.high:.2f})",
        f"{result.flops / (1e12 if cuda else 1e9):.1f}",
        f"{100 * result.roofline_share:.0f} %",
    ]
    counted = [asked.kernels, asked.launches] if cuda else [asked.operators]
    cells += ["-" if number is None else f"{number:,}" for number in [*counted, asked.host_waits]]
    if result.peak_bytes is not None:
        cells.append(f"{result.peak_bytes / GB:.2f}")
    return [*cells, f"{result.start_seconds:.1f}"]


def memory_lines(memory: Memory) -> list[str]:
    """Peaks, and what fits."""
    kind = "ESTIMATED on tensors without data, kernels' workspaces not included" if memory.estimated else "measured"
    lines = [f"memory     full width, {memory.precision}, {kind}"]
    lines += aligned([[f"  batch {size}", f"{peak / GB:.2f} GB"] for size, peak in memory.peaks.items()])
    for fit in memory.fits:
        advice = f"trainer.accumulate={fit.accumulate}" if fit.accumulate else "nothing fits"
        lines.append(
            f"  {fit.gigabytes} GB, a tenth free: up to {fit.batch_size} at once; "
            f"for trainer.batch_size={memory.batch_size}: {advice}"
        )
    return lines


def _width(part: dict[str, object]) -> object:
    return part.get("channels", part.get("base_channels"))
