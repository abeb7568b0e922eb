"""How fast evaluation is, as ratios within one process: the contestants take turns, and each round gives a ratio.

    python scripts/bench_evaluation.py            # what this machine can do: minutes, most of them scipy's
    python scripts/bench_evaluation.py --quick    # the feature pass on a few images

Parts: `features`, cifargan's Inception against torch-fidelity's own loop; `frechet`, the Fréchet distance of 2,048
features against scipy's matrix root; `end_to_end`, generated images passed through Inception and scored, in seconds
(only with CUDA unless asked for). Speed does not depend on the weights: without --weights they are random.
"""

import argparse
import logging
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import hydra
import scipy
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity import feature_extractor_inceptionv3
from torch_fidelity.utils import get_featuresdict_from_dataset

from cifargan.build.parts import build_generator
from cifargan.build.settings import plain
from cifargan.evaluation.feature_stats import in_batches, measure
from cifargan.evaluation.features import full_precision
from cifargan.evaluation.inception import Inception
from cifargan.evaluation.metrics import frechet_distance, gaussian, kernel_distance
from cifargan.sampling import Sampler
from cifargan.schema import conf_dir
from cifargan.training.rng import be_deterministic

PARTS = ("features", "frechet", "end_to_end")


class TensorImages(Dataset[Tensor]):
    """Images in memory, as torch-fidelity takes them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def random_images(n: int) -> Tensor:
    """(n, 3, 32, 32) uint8."""
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@contextmanager
def inception_weights(named: str | None) -> Iterator[str]:
    """The named file, else one of random weights."""
    module = feature_extractor_inceptionv3
    if named:
        yield named
        return
    with tempfile.TemporaryDirectory() as folder, patch.object(module, "load_state_dict_from_url"):
        with patch.object(module.FeatureExtractorInceptionV3, "load_state_dict"):
            state = module.FeatureExtractorInceptionV3("random", ["2048"]).state_dict()
        torch.save(state, Path(folder, "random.pth"))
        yield str(Path(folder, "random.pth"))


def compare(contestants: dict[str, Callable[[], object]], *, rounds: int) -> None:
    """Time all of them in every round, in turning order, and print how many times faster than the first each is."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - start)
    for name in names:
        ratios = [base / own for base, own in zip(seconds[names[0]], seconds[name], strict=True)]
        spread = f"({min(ratios):.2f} to {max(ratios):.2f}, {rounds} rounds)"
        print(f"  {name:<46} {statistics.median(seconds[name]):9.3f} s   x {statistics.median(ratios):.2f} {spread}")


def bench_features(path: str, images: Tensor, *, batch_size: int, rounds: int, device: torch.device) -> None:
    """The pass over images in host memory until the features are there."""
    cuda = device.type == "cuda"
    own = Inception(weights=path, device=device)  # first, as torch-fidelity would run whatever a file holds
    network = feature_extractor_inceptionv3.FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], path)
    network.to(device)
    dataset = TensorImages(images)

    def theirs() -> Tensor:
        found: dict[str, Tensor] = get_featuresdict_from_dataset(dataset, network, batch_size, cuda, False, False)
        return found["2048"]

    def theirs_in_full_precision() -> Tensor:
        with full_precision(device):
            return theirs()

    def ours(extractor: Inception) -> Callable[[], Tensor]:
        batches = torch.split(images, batch_size)
        return lambda: torch.cat([extractor.extract(x.to(device)).features.cpu() for x in batches])

    contestants: dict[str, Callable[[], Tensor]] = {
        "torch-fidelity's loop, float32": theirs_in_full_precision,
        "cifargan, float32": ours(own),
    }
    if cuda:
        turned = Inception(weights=path, device=device)
        turned.network.to(memory_format=torch.channels_last)
        contestants |= {
            "torch-fidelity's loop, torch's defaults (TF32)": theirs,
            "cifargan, float32, channels last": ours(turned),
            "cifargan, bfloat16": ours(Inception(weights=path, precision="bf16", device=device)),
        }
    print(f"features: {len(images)} images of 32x32, batches of {batch_size}")
    found = {name: contestant() for name, contestant in contestants.items()}  # and warm
    for name, features in found.items():
        error = (features - found["cifargan, float32"]).norm() / features.norm()
        print(f"  {name:<46} differs from cifargan's float32 by {float(error):.1e} of the features")
    compare(dict(contestants), rounds=rounds)


def bench_frechet(*, rounds: int) -> None:
    """Two normal distributions of 2,048 features with spectra that fall, as those of real features do."""
    from scipy.linalg import sqrtm

    rows = torch.randn(2, 5000, 2048, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -3, 2048)
    a, b = (gaussian(features) for features in rows)

    def with_scipy() -> float:
        root = sqrtm((a.covariance @ b.covariance).numpy())
        traces = a.covariance.trace() + b.covariance.trace() - 2 * float(root.trace().real)
        return float((a.mean - b.mean).square().sum() + traces)

    error = abs(frechet_distance(a, b) / with_scipy() - 1)  # and warm
    print(f"frechet: d = 2048; the two differ by {error:.0e}")
    compare(
        {f"scipy {scipy.__version__}, linalg.sqrtm": with_scipy, "cifargan": lambda: frechet_distance(a, b)},
        rounds=rounds,
    )


def bench_end_to_end(path: str, *, samples: int, batch_size: int, device: torch.device) -> None:
    """BigGAN at its full width with random weights: images, features, FID, KID and IS, as an evaluation does it."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        config = OmegaConf.create(plain(hydra.compose("train", ["model=biggan", "name=bench", "device=cpu"])))
    generator = build_generator(config.model.generator, num_classes=10, image_size=32)
    sampler = Sampler(generator, list("0123456789"), device=device, batch_size=batch_size)
    extractor = Inception(weights=path, device=device)
    real = random_images(min(samples, 5000))
    batches = in_batches(real, torch.zeros(len(real)), batch_size)
    reference = measure(batches, len(real), extractor, device=device, label="reference")
    start = time.perf_counter()
    fake = measure(sampler.stream(samples, seed=1), samples, extractor, device=device, label="generated")
    passed = time.perf_counter()
    frechet_distance(reference.gaussian, fake.gaussian)
    kernel_distance(reference.features, fake.features, subset_size=min(1000, len(real)), device=device)
    scored = time.perf_counter()
    print(f"end_to_end: {samples} images of a full-width BigGAN, batches of {batch_size}, float32; reference at hand")
    print(f"  generated and passed {passed - start:.1f} s, scored {scored - passed:.1f} s: {scored - start:.1f} s")


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only `features`, on 8 images")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: what this machine can do")
    parser.add_argument("--weights", help="path of Inception's weights (default: random ones)")
    parser.add_argument("--images", type=int, help="images in `features` (default: 10000 with CUDA, else 64)")
    parser.add_argument("--samples", type=int, default=50_000, help="images in `end_to_end` (default: 50000)")
    parser.add_argument("--batch-size", type=int, help="default: 100 with CUDA, else 16")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", "This DataLoader will create")  # torch-fidelity takes four workers, or more
    logging.basicConfig(level=logging.ERROR)  # that random weights give no FID is known
    device, cuda = torch.device(options.device), options.device.startswith("cuda")
    parts = ["features"] if options.quick else options.parts or (PARTS if cuda else PARTS[:2])
    batch_size = options.batch_size or (100 if cuda else 16)
    images = options.images or (8 if options.quick else 10_000 if cuda else 64)
    be_deterministic(False)  # cuDNN looks for the fastest algorithm, for all contestants, as in training
    machine = torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine()
    weights = options.weights or "random"
    print(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}, weights: {weights}")
    with inception_weights(options.weights) as path:
        if "features" in parts:
            bench_features(path, random_images(images), batch_size=batch_size, rounds=options.rounds, device=device)
        if "frechet" in parts:
            bench_frechet(rounds=options.rounds)
        if "end_to_end" in parts:
            bench_end_to_end(path, samples=options.samples, batch_size=batch_size, device=device)


if __name__ == "__main__":
    main()
