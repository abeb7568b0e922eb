"""The hit rate of a class head: counted by hand."""

import pytest
import torch
from torch import Tensor

from cifargan.evaluation.classifier import BATCH, head_hit_rate
from cifargan.models.interface import Discriminator, DiscriminatorOutput


class Brightest(Discriminator):
    """Takes the brightest channel for the class."""

    def __init__(self, *, head: bool = True) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor, y: Tensor) -> DiscriminatorOutput:
        assert x.dtype == torch.float32
        assert x.min() >= -1
        assert x.max() <= 1
        means = x.mean(dim=(2, 3))
        return DiscriminatorOutput(logits=means[:, 0], class_logits=means if self.head else None)


def channels(*brightest: int) -> Tensor:
    images = torch.zeros(len(brightest), 3, 2, 2, dtype=torch.uint8)
    images[torch.arange(len(brightest)), torch.tensor(brightest)] = 200
    return images


@pytest.mark.parametrize("copies", [1, BATCH])  # within a batch and over several
def test_hits_are_counted_for_all_and_for_each_class(copies: int) -> None:
    images, labels = channels(0, 0, 1, 2, 1, 1), torch.tensor([0, 0, 0, 1, 1, 1])
    images, labels = images.repeat(copies, 1, 1, 1), labels.repeat(copies)
    classes = ("ant", "bee", "cow")
    more = torch.zeros(5, dtype=torch.int64)  # of samples whose images were not kept
    values = head_hit_rate(Brightest(), images, torch.cat([labels, more]), classes, torch.device("cpu"))
    assert [(value.class_name, value.value, value.n) for value in values] == [
        (None, 4 / 6, 6 * copies),
        ("ant", 2 / 3, 3 * copies),
        ("bee", 2 / 3, 3 * copies),
    ]


def test_without_a_class_head_there_is_nothing_to_count() -> None:
    with pytest.raises(ValueError, match="no class head"):
        [*head_hit_rate(Brightest(head=False), channels(0), torch.tensor([0]), ("ant",), torch.device("cpu"))]
