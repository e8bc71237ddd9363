"""The mean over a whole map, with a gradient in the map's order of memory.

In channels-last order torch's own is slow, and its gradient comes in the other order, which slows
the layer before it, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class GlobalAverage(nn.AdaptiveAvgPool2d):
    """The mean of each channel; quicker where a processor trains in channels-last order."""

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, 1, 1)."""
        suits = features.ndim == 4 and features.device.type == "cpu" and self.training
        if suits and features.is_contiguous(memory_format=torch.channels_last):
            return MapAverage.apply(features)  # type: ignore[no-any-return]
        return super().forward(features)


class MapAverage(torch.autograd.Function):
    """The mean of each channel; its gradient is written as the features lie."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        """Return the means (N, C, 1, 1)."""
        ctx.shape, ctx.kind = features.shape, features.dtype
        return functional.avg_pool2d(features, features.shape[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Return the gradient of the features."""
        height, width = ctx.shape[2:]
        inner = torch.empty(ctx.shape, dtype=ctx.kind, memory_format=torch.channels_last)
        return inner.copy_(grads[0] / (height * width))


def is_global(module: nn.AdaptiveAvgPool2d) -> bool:
    """Return whether a layer takes the mean over the whole map."""
    return module.output_size in (1, (1, 1), [1, 1])
