"""Draw endless training batches on the device that holds the images."""

import torch
from torch import Tensor

from cifargan.data.sources import ImageSet
from cifargan.distributed import shard
from cifargan.errors import UserError
from cifargan.images import to_float
from cifargan.latents import random_stream


class ImageStream:
    """Batches of constant size; each epoch gives each image once, in a new random order.

    The device holds all images as bytes and draws all random numbers, so no batch waits for the host. A batch that
    reaches the end of an epoch is filled from the next one. The order of an epoch depends only on the seed and the
    number of the epoch.

    A batch has two halves: `advance` runs on the host, `take` on the device, where a CUDA graph can replay it.

    Args:
        images: The images.
        batch_size: B of all processes together, at least 1; may be larger than the set. Each process takes its rows.
        device: Where the images are stored and the batches are made.
        seed: Of the order and of the flips.

    Attributes:
        generator: Draws the flips.
        taken: () int64 on the device, number of images given out, as the device counts.

    Raises:
        UserError: `batch_size` is out of range.
    """

    def __init__(self, *, images: ImageSet, batch_size: int, device: torch.device, seed: int) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size: must be at least 1, not {batch_size}")
        self.batch_size = batch_size
        self.device = device
        self.generator = torch.Generator(device)
        self.generator.manual_seed(seed)
        self._seed = seed
        self._fingerprint = images.fingerprint
        self._images = images.images.to(device)
        self._labels = images.labels.to(device)
        self._flip_probability = 0.5 if images.flip else 0.0
        self._seen = 0  # images given out, as the host counts
        self.taken = torch.zeros((), dtype=torch.int64, device=device)
        self._orders = torch.empty(0, len(images), dtype=torch.int64, device=device)  # (epochs at hand, images)
        self._epochs: list[int] = []  # whose orders these are; epoch e lies in row e modulo their number

    @property
    def images_seen(self) -> int:
        """Number of images given out."""
        return self._seen

    @property
    def epoch(self) -> int:
        """Number of completed epochs."""
        return self._seen // len(self._images)

    def next(self) -> tuple[Tensor, Tensor]:
        """Draw a batch.

        Returns:
            (B, 3, H, W) float32 images in [-1, 1], and (B,) int64 labels; with several processes, this one's share.
        """
        self.advance(1)
        return self.take()

    def advance(self, batches: int) -> None:
        """Prepare the orders that the next `batches` calls of `take` read."""
        total = len(self._images)
        first, self._seen = self._seen, self._seen + batches * self.batch_size
        # This many images touch at most this many epochs, wherever they begin.
        rows = (batches * self.batch_size - 1) // total + 2
        if rows > len(self._orders):
            self._orders = torch.empty(rows, total, dtype=torch.int64, device=self.device)
            self._epochs = [-1] * rows
        for epoch in range(first // total, (self._seen - 1) // total + 1):
            row = epoch % len(self._epochs)
            if self._epochs[row] != epoch:
                self._orders[row] = self._order_of(epoch)
                self._epochs[row] = epoch

    def take(self) -> tuple[Tensor, Tensor]:
        """Make the batch that `advance` prepared, without the host; the result is that of `next`."""
        place = self.taken + torch.arange(self.batch_size, device=self.device)  # (B,), counted since the first epoch
        self.taken += self.batch_size
        total = len(self._images)
        chance = torch.rand(self.batch_size, device=self.device, generator=self.generator)
        place, chance = shard(place), shard(chance)
        index = self._orders[place // total % len(self._orders), place % total]
        images, labels = self._images[index], self._labels[index]
        mirrored = (chance < self._flip_probability)[:, None, None, None]  # (B,) -> (B, 1, 1, 1)
        return to_float(torch.where(mirrored, images.flip(-1), images)), labels

    def _order_of(self, epoch: int) -> Tensor:
        """The order of the images in an epoch, (images,) int64."""
        own = random_stream(self._seed, epoch, device=self.device)
        return torch.randperm(len(self._images), device=self.device, generator=own)

    def state_dict(self) -> dict[str, Tensor | int | str]:
        """Everything that a bit-exact resume needs.

        Returns:
            The generator's state as a CPU tensor, the seed of the orders, the number of images given out, the type of
            the device that drew them, and the fingerprint of the data.
        """
        return {
            "generator": self.generator.get_state(),
            "seed": self._seed,
            "images_seen": self._seen,
            "device": self.device.type,
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Tensor | int | str]) -> None:
        """Continue where another stream stopped.

        Args:
            state: The result of `state_dict`. The batch size may differ from that stream's.

        Raises:
            UserError: The state belongs to other images, or to another type of device, whose random numbers differ.
        """
        if state["fingerprint"] != self._fingerprint:
            raise UserError(
                "the training images are not those that the checkpoint was trained on: use the same data and data.* "
                "settings, or start a new run"
            )
        here, there = self.device.type, state["device"]
        if here != there:
            raise UserError(f"the checkpoint was trained on {there} and cannot resume exactly on {here}; use {there}")
        generator, seed, seen = state["generator"], state["seed"], state["images_seen"]
        if not (isinstance(generator, Tensor) and isinstance(seed, int) and isinstance(seen, int)):
            raise TypeError("this is not a state of ImageStream")
        self.generator.set_state(generator.cpu())
        self._seed, self._seen = seed, seen
        self.taken.fill_(seen)
        self._epochs = [-1] * len(self._epochs)
