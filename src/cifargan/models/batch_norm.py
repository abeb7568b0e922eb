"""Batch norm over the whole batch, also when several processes share it."""

import torch
from torch import Tensor, nn

from cifargan import distributed


class BatchNorm2d(nn.BatchNorm2d):
    """As torch's, with the statistics of all processes' images (torch's SyncBatchNorm needs CUDA).

    With one process, or in eval mode, it calls torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` (N, C, H, W)."""
        processes = distributed.num_shards()
        if not self.training or processes == 1:
            return super().forward(x)
        h = x.to(torch.promote_types(x.dtype, torch.float32))
        count = h.numel() // h.shape[1] * processes  # of values a channel
        mean = distributed.all_reduce_sum(h.sum(dim=(0, 2, 3))) / count  # (C,)
        centred = h - mean[:, None, None]
        variance = distributed.all_reduce_sum(centred.square().sum(dim=(0, 2, 3))) / count  # (C,), biased
        self._follow(mean.detach(), variance.detach() * count / (count - 1))
        y = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            y = torch.addcmul(self.bias[:, None, None], y, self.weight[:, None, None])
        return y.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        """Move the running statistics as torch does: a moving average, or a plain one where momentum is None."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased_variance, share)
