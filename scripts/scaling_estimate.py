"""Estimates on paper what several GPUs would give: compute against messages for each round of a recipe.

    python scripts/scaling_estimate.py biggan --image-size 32 128

Counts come from the networks themselves (parameters, batch norms, floating-point operations of unfolded passes);
speeds of GPUs and links are assumptions, printed with the table. Nothing of it is a measurement.
"""

import argparse

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from cifargan.bench.presets import compose
from cifargan.build.parts import build_discriminator, build_generator
from cifargan.models.batch_norm import BatchNorm2d

CLASSES = 10
PEAK, SHARE = 790e12, 0.45  # FLOP/s of dense bf16, and the share of it that a round reaches
LINKS = {8: (450e9, 20e-6), 64: (50e9, 40e-6)}  # GPUs: bytes/s of each GPU's link, s that a small message takes


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default="biggan")
    parser.add_argument("--image-size", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 512, 2048], help="images in a global batch")
    options = parser.parse_args()
    print(f"assumed: {PEAK / 1e12:.0f} TFLOP/s x {SHARE:.0%};", end=" ")
    print("; ".join(f"{n} GPUs: {b / 1e9:.0f} GB/s, {1e6 * s:.0f} us a message" for n, (b, s) in LINKS.items()))
    head = f"{'size':>4} {'batch':>5} {'GPUs':>4} {'compute':>9} {'gradients':>16} {'batch norm':>16}"
    print(f"{head} {'round':>9} {'speed-up':>8} {'efficiency':>10}")
    for size in options.image_size:
        for batch in options.batch:
            report(options.experiment, size, batch)


def report(experiment: str, size: int, batch: int) -> None:
    """One line for each number of GPUs."""
    latent = (
        [] if (size.bit_length() - 2) * (80 // (size.bit_length() - 2)) == 80 else ["model.generator.latent_dim=84"]
    )
    config = compose(experiment, f"data.image_size={size}", *latent)
    with FakeTensorMode():
        generator = build_generator(config.model.generator, num_classes=CLASSES, image_size=size)
        discriminator = build_discriminator(config.model.discriminator, num_classes=CLASSES, image_size=size)
        g, d = forward_flops(generator, discriminator, size)
    d_steps = config.trainer.d_steps
    # D's step: G forward, D forward and backward (twice the forward) on real and fake; G's: both there and back,
    # but for the gradients of D's weights.
    flops = batch * (d_steps * (g + 2 * 3 * d) + 3 * g + 2 * d)
    bytes_ = 4 * (d_steps * count(discriminator) + count(generator))
    # Each batch norm sends a sum twice on the way there; those that learn, twice on the way back as well.
    norms = sum(isinstance(module, BatchNorm2d) for module in generator.modules())
    messages = 2 * norms * (d_steps + 2)
    alone = flops / (PEAK * SHARE)
    for n, (speed, latency) in LINKS.items():
        gradients = 2 * (n - 1) / n * bytes_ / speed
        waits = messages * latency
        together = alone / n + gradients + waits
        sent = f"{bytes_ / 1e6:.0f} MB {1e3 * gradients:.2f} ms"
        print(
            f"{size:>4} {batch:>5} {n:>4} {1e3 * alone / n:>6.2f} ms {sent:>16} {f'{messages} x: {1e3 * waits:.2f} ms':>16} "
            f"{1e3 * together:>6.2f} ms {alone / together:>8.1f} {alone / together / n:>10.0%}"
        )


def forward_flops(generator: nn.Module, discriminator: nn.Module, size: int) -> tuple[int, int]:
    """Floating-point operations of one image's way through each network, two a multiply-add."""
    z = torch.empty(1, generator.latent_dim)
    y = torch.zeros(1, dtype=torch.int64)
    x = torch.empty(1, 3, size, size)
    found = []
    for network, arguments in ((generator.eval(), (z, y)), (discriminator.eval(), (x, y))):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(*arguments)
        found.append(counter.get_total_flops())
    return found[0], found[1]


def count(network: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main()
