"""What keeping freed memory is worth on a CPU: it is switched on and off in turn within one process.

    python scripts/bench_heap.py
    python scripts/bench_heap.py --rounds 9

Prints, for feature extraction and for training iterations, the ratio of wall times without and with it: the median over
the rounds, the lowest and the highest. One thread.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cifargan.bench.presets import compose, narrowed, random_images
from cifargan.build.game import build_game
from cifargan.evaluation.efficientnet import EfficientNetLite0
from cifargan.malloc import keep_freed_memory
from cifargan.training.speed import Switches

CPU = torch.device("cpu")
FAST = Switches(channels_last=True, fused=True, batched_spectral_norm=True, fold_up=True, fold_down=True)
# Preset, width (None: its own), batch.
TRAININGS: tuple[tuple[str, int | None, int], ...] = (
    ("dcgan", None, 64),
    ("cdcgan_concat", None, 128),
    ("biggan_original", 64, 50),
)


def features() -> Callable[[], object]:
    """Pass 500 images through EfficientNet-Lite0, 100 at a time as evaluation does."""
    extractor = EfficientNetLite0(device=CPU)
    batches: Sequence[Tensor] = torch.split(random_images(500, image_size=32).images, 100)
    return lambda: [extractor.extract(batch) for batch in batches]


def iteration(preset: str, width: int | None, batch: int) -> Callable[[], object]:
    """Play a round of a preset in float32."""
    config = narrowed(compose(preset, "device=cpu", "precision=fp32"), width)
    config.trainer.batch_size = batch
    images = random_images(1_000, image_size=config.data.image_size)
    return build_game(config, images=images, device=CPU, switches=FAST).iterate


def compare(work: Callable[[], object], rounds: int) -> list[float]:
    """Ratios of the time without and with kept memory, a round each."""
    ratios = []
    for _ in range(rounds):
        seconds = []
        for kept in (False, True):
            if not keep_freed_memory(kept):
                raise SystemExit("there is nothing to compare: this C library's malloc cannot be told to keep memory")
            work()
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
        ratios.append(seconds[0] / seconds[1])
    return ratios


def main() -> None:
    """Compare, and tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.platform()}, ratio over {rounds} rounds")
    works = {"features of 500 images, 100 at a time": features}
    for preset, width, batch in TRAININGS:
        label = f"{preset}, {f'{width} wide' if width else 'own width'}, batch {batch}"
        works[label] = lambda preset=preset, width=width, batch=batch: iteration(preset, width, batch)  # type: ignore[misc]
    for label, build in works.items():
        ratios = compare(build(), rounds)
        print(f"{label:45}{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


if __name__ == "__main__":
    main()
