"""Endless training batches, drawn on the device that the images lie on."""

import torch
from torch import Tensor

from cifargan.data.sources import ImageSet
from cifargan.errors import UserError
from cifargan.images import to_float


class ImageStream:
    """Batches of constant size, in a new random order each epoch, each image once an epoch.

    All images lie on the device as bytes, and all draws are made there, so no batch waits for the host. A batch that
    reaches the end of an epoch is filled from the next one.

    Args:
        images: The images.
        batch_size: B, at least 1; may be larger than the set.
        device: Where the images lie and the batches are made.
        seed: Of the order and of the flips.

    Raises:
        UserError: `batch_size` is out of range.
    """

    def __init__(self, *, images: ImageSet, batch_size: int, device: torch.device, seed: int) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size: must be at least 1, not {batch_size}")
        self.batch_size = batch_size
        self._fingerprint = images.fingerprint
        self._images = images.images.to(device)
        self._labels = images.labels.to(device)
        self._flip_probability = 0.5 if images.flip else 0.0
        self._generator = torch.Generator(device)
        self._generator.manual_seed(seed)
        self._order = torch.arange(len(images.labels), device=device)
        self._seen = 0

    @property
    def images_seen(self) -> int:
        """How many images have been given out."""
        return self._seen

    @property
    def epoch(self) -> int:
        """How many times the whole set has been given out."""
        return self._seen // len(self._order)

    def next(self) -> tuple[Tensor, Tensor]:
        """Draw a batch.

        Returns:
            (B, 3, H, W) float32 images in [-1, 1], and (B,) int64 labels.
        """
        index = self._draw()
        images, labels = self._images[index], self._labels[index]
        chance = torch.rand(self.batch_size, device=index.device, generator=self._generator)
        mirrored = (chance < self._flip_probability)[:, None, None, None]  # (B,) -> (B, 1, 1, 1)
        return to_float(torch.where(mirrored, images.flip(-1), images)), labels

    def _draw(self) -> Tensor:
        """The indices (B,) of the next images."""
        pieces, missing, total = [], self.batch_size, len(self._order)
        while missing:
            cursor = self._seen % total
            if cursor == 0:
                self._order = torch.randperm(total, device=self._order.device, generator=self._generator)
            piece = self._order[cursor : cursor + missing]
            pieces.append(piece)
            missing -= len(piece)
            self._seen += len(piece)
        return torch.cat(pieces)

    def state_dict(self) -> dict[str, Tensor | int | str]:
        """Everything that a bit-exact continuation needs.

        Returns:
            The generator's state and the order as CPU tensors, how many images have been given out, the kind of device
            that drew them, and the fingerprint of the data.
        """
        return {
            "generator": self._generator.get_state(),
            "order": self._order.cpu(),
            "images_seen": self._seen,
            "device": self._order.device.type,
            "fingerprint": self._fingerprint,
        }

    def load_state_dict(self, state: dict[str, Tensor | int | str]) -> None:
        """Go on where another stream stopped.

        Args:
            state: What `state_dict` gave. The batch size may differ from that stream's.

        Raises:
            UserError: The state is of other images, or of another kind of device, whose random numbers differ.
        """
        if state["fingerprint"] != self._fingerprint:
            raise UserError(
                "the training images are not those that the checkpoint was trained on: give back the same data and "
                "data.* settings, or start a new run"
            )
        here, there = self._order.device.type, state["device"]
        if here != there:
            raise UserError(f"the checkpoint was trained on {there} and cannot go on exactly on {here}; use {there}")
        generator, order, seen = state["generator"], state["order"], state["images_seen"]
        if not (isinstance(generator, Tensor) and isinstance(order, Tensor) and isinstance(seen, int)):
            raise TypeError("the state is none that ImageStream.state_dict gave")
        self._generator.set_state(generator.cpu())
        self._order = order.to(self._order.device)
        self._seen = seen
