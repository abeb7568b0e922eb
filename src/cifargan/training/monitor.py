"""Means of the training's scalars, kept on the device until they are logged."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from cifargan import distributed


class RunningMeans(Metric):
    """The mean of each named scalar since the last reset, with one small kernel a step and no wait for the device.

    torchmetrics adds the sums up across ranks when `compute` is called. It also remembers the first step at which each
    term was not finite, so that a diverged run can name it at the next log point.
    """

    full_state_update = False
    total: Tensor
    count: Tensor
    first_bad_step: Tensor

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        never = torch.full((len(names),), torch.iinfo(torch.int64).max)
        self.add_state("total", torch.zeros(len(names)), dist_reduce_fx="sum", persistent=True)
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum", persistent=True)
        self.add_state("first_bad_step", never, dist_reduce_fx="min", persistent=True)

    def update(self, metrics: Mapping[str, Tensor], step: Tensor) -> None:
        """Add one step.

        Args:
            metrics: a 0-dim tensor for each of `names`.
            step: () int64, the generator step.
        """
        values = torch.stack([metrics[name].float() for name in self.names])
        self.total += values
        self.count += 1
        bad_now = torch.where(values.isfinite(), torch.iinfo(torch.int64).max, step)
        self.first_bad_step = torch.minimum(self.first_bad_step, bad_now)

    def compute(self) -> dict[str, float]:
        """The means. Waits for the device."""
        means = (self.total / self.count).tolist()
        return dict(zip(self.names, means, strict=True))

    def first_bad(self) -> tuple[str, int] | None:
        """The first term that was not finite in any process, and its step. Waits for the device."""
        steps: list[int] = distributed.all_reduce_min(self.first_bad_step).tolist()
        worst = min(range(len(steps)), key=steps.__getitem__)
        if steps[worst] == torch.iinfo(torch.int64).max:
            return None
        return self.names[worst], steps[worst]

    def shared_state(self) -> dict[str, Any]:
        """What `load_state_dict` takes, the same for any number of processes: the average over those there are."""
        return {
            "total": distributed.all_reduce_mean(self.total),
            "count": distributed.all_reduce_mean(self.count),
            "first_bad_step": distributed.all_reduce_min(self.first_bad_step),
        }
