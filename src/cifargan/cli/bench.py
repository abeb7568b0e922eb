"""`cifargan bench`: how fast training is here, against plain PyTorch that computes the same."""

import argparse
import logging
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from cifargan.bench.gate import passed_gate
from cifargan.bench.presets import compose, narrowed, reference_module
from cifargan.bench.roofline import count_flops, count_traffic, measure
from cifargan.bench.timing import compare, one_thread
from cifargan.bench.variants import has_bf16_units, variants
from cifargan.cli.options import Parser, count
from cifargan.cli.tables import aligned
from cifargan.config import plain
from cifargan.device import select_device
from cifargan.errors import UserError
from cifargan.files import write_json
from cifargan.runs.provenance import device_name, git_state, versions

CPU_WIDTH = 32
CPU_BATCH = 8
ROUNDS = 5


def parser() -> argparse.ArgumentParser:
    """The options of `cifargan bench`."""
    p = Parser(
        prog="cifargan bench",
        usage="cifargan bench [PRESET] [options]",
        description="Times a training iteration against plain PyTorch, after checking that both compute the same.\n"
        "On a CPU one thread and narrow networks; on a GPU the preset as it is. A table, and JSON.",
        epilog="examples:\n"
        "  cifargan bench                                    BigGAN on this machine\n"
        "  cifargan bench biggan_original --device cpu\n"
        "  cifargan bench dcgan --only-gate                  check, and time nothing",
    )
    p.add_argument("preset", nargs="?", default="biggan", metavar="PRESET", help="an experiment (default: biggan)")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    p.add_argument("--batch-size", type=count, metavar="N", help=f"default: the preset's; on a CPU {CPU_BATCH}")
    p.add_argument("--width", type=count, metavar="N", help=f"of the generator (default: own; on a CPU {CPU_WIDTH})")
    p.add_argument("--rounds", type=count, metavar="N", default=ROUNDS, help=f"turns of each (default: {ROUNDS})")
    p.add_argument(
        "--no-bf16", action="store_true", help="without bf16, which is timed where the device computes in it"
    )
    p.add_argument("--compile", action="store_true", help="add torch.compile, which takes minutes")
    p.add_argument("--only-gate", action="store_true", help="check that both compute the same, and time nothing")
    p.add_argument("--json", type=Path, metavar="FILE", help="default: outputs/bench/<preset>_<device>_<time>.json")
    return p


def run(arguments: list[str]) -> int:
    """Check, time, print and write."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    options = parser().parse_args(arguments)
    device = select_device(options.device)
    if device.type == "mps":
        raise UserError("cifargan bench cannot time MPS: choose --device cpu")
    full = compose(options.preset, f"device={device}", "precision=fp32", "trainer.accumulate=1")
    presets = reference_module().PRESETS
    if options.preset not in presets:
        raise UserError(
            f"cifargan bench {options.preset}: the plain PyTorch reference cannot train it; choose from {', '.join(presets)}"
        )
    before = torch.get_rng_state()
    config = scaled(full, options, device)
    record: dict[str, Any] = {"preset": options.preset, "config": plain(config), "machine": machine(device)}
    where = record["machine"]
    print(
        f"machine    {where['device']}, {where['cpu']}, threads: {where['threads']}, torch {where['versions']['torch']}"
    )
    print(f"batch      {config.trainer.batch_size}, {config.trainer.d_steps} + 1 updates an iteration")
    checks = passed_gate(full)
    print("gate       cifargan, all options on, agrees with the reference")
    print(*aligned([[f"  {check.name}", f"{check.error:.1e}", f"of {check.limit:.0e}"] for check in checks]), sep="\n")
    record["checks"] = [asdict(check) for check in checks]
    if not options.only_gate:
        chosen = variants(device, bf16=has_bf16_units(device) and not options.no_bf16, compiled=options.compile)
        with one_thread(device):
            results, baseline = compare(chosen, config, device=device, rounds=options.rounds)
            roofline = measure(device, {variant.precision for variant in chosen})
            work = [counted(baseline.trainer.iterate) for counted in (count_flops, count_traffic)]
        record |= {"results": results, "roofline": asdict(roofline), "flops": work[0], "traffic": work[1]}
        print("\n".join(["", *timing_lines(record)]))
    torch.set_rng_state(before)
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    path = options.json or Path("outputs", "bench", f"{options.preset}_{device.type}_{stamp}.json")
    write_json(path, record)
    print(f"\n{path}")
    return 0


def scaled(config: DictConfig, options: argparse.Namespace, device: torch.device) -> DictConfig:
    """The preset with the width and the batch size to time."""
    cpu = device.type == "cpu"
    config = narrowed(config, options.width or (CPU_WIDTH if cpu else None))
    config.trainer.batch_size = options.batch_size or (CPU_BATCH if cpu else config.trainer.batch_size)
    return config


def machine(device: torch.device) -> dict[str, Any]:
    """The hardware and the code of a measurement."""
    info = Path("/proc/cpuinfo")
    names = [
        line for line in (info.read_text().splitlines() if info.is_file() else []) if line.startswith("model name")
    ]
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": device_name(device),
        "cpu": names[0].partition(":")[2].strip() if names else platform.machine(),
        "threads": 1 if device.type == "cpu" else torch.get_num_threads(),
        "versions": versions(),
        "git": git_state(Path(__file__).parent),
    }


def timing_lines(record: dict[str, Any]) -> list[str]:
    """A row for each variant, and the roofline."""
    cuda = record["results"][0]["peak_bytes"] is not None
    unit, size = ("TFLOP/s", 1e12) if cuda else ("GFLOP/s", 1e9)
    flops, traffic, roofline = record["flops"], record["traffic"], record["roofline"]
    rows = [
        ["", "it/s", "images/s", "x baseline", "(spread)", unit, "of roof", "start s", *(["peak GB"] if cuda else [])]
    ]
    for result in record["results"]:
        rate, ratio = result["iterations_per_second"], result["ratio"]
        cells = [result["name"], f"{rate:.2f}", f"{result['images_per_second']:,.0f}", f"{ratio['median']:.2f}"]
        cells += [f"({ratio['low']:.2f} to {ratio['high']:.2f})", f"{flops * rate / size:.1f}"]
        cells += [f"{flops * rate / roofline['flops'][result['precision']]:.0%}", f"{result['start_seconds']:.1f}"]
        rows.append([*cells, *([f"{result['peak_bytes'] / 1e9:.2f}"] if cuda else [])])
    peaks = ", ".join(f"{rate / size:,.0f} {unit} in {name}" for name, rate in roofline["flops"].items())
    arithmetic, copies = flops / max(roofline["flops"].values()), traffic / roofline["bytes"]
    return [
        *aligned(rows),
        *(
            f"{r['name']}: iterations could not be replayed from a graph"
            for r in record["results"]
            if r["replayed"] is False
        ),
        f"roofline: {peaks}, copies {roofline['bytes'] / 1e9:,.0f} GB/s, measured in this run",
        f"an iteration in textbook order: {flops / 1e9:,.2f} GFLOP, at least {1e3 * arithmetic:,.2f} ms; its operators "
        f"read and write {traffic / 1e9:,.2f} GB, at least {1e3 * copies:,.2f} ms",
    ]
