"""Max pooling of 2x2 pixels by the package's own C++.

torch's keeps eight bytes for each output, where one will do, and its gradient is slow in bf16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trimtab.models.kernels import bfloat, call, has_rows, suits


class QuickMaxPool(nn.MaxPool2d):
    """Max pooling of 2x2 pixels; quicker where a processor trains in channels-last order."""

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C, H / 2, W / 2), rounded as `ceil_mode` says."""
        if self.training and suits(features) and has_rows(features):
            more = int(self.ceil_mode)
            sides = tuple((side + more) // 2 for side in features.shape[2:])
            if all(sides):
                return Pooled.apply(features, *sides)  # type: ignore[no-any-return]
        return super().forward(features)  # type: ignore[no-any-return]


class Pooled(torch.autograd.Function):
    """The largest of each four pixels; where several are, the first of them gets the gradient."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, down: int, across: int) -> Tensor:
        """Return the outputs (N, C, down, across)."""
        outputs = torch.empty((*features.shape[:2], down, across), dtype=features.dtype,
                              device="cpu", memory_format=torch.channels_last)  # fmt: skip
        places = torch.empty(outputs.numel(), dtype=torch.uint8, device="cpu")
        ctx.maps = (*features.shape, down, across)
        call("pool_forward", features, outputs, places, ctx.maps, bfloat(features))
        ctx.save_for_backward(places)
        ctx.kind = features.dtype
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the features (N, C, H, W)."""
        (places,) = ctx.saved_tensors
        outer = grads[0].to(ctx.kind).contiguous(memory_format=torch.channels_last)
        inner = torch.empty(ctx.maps[:4], dtype=outer.dtype, device="cpu",
                            memory_format=torch.channels_last)  # fmt: skip
        call("pool_backward", outer, places, inner, ctx.maps, bfloat(outer))
        return inner, None, None


def is_of_four(module: nn.MaxPool2d) -> bool:
    """Return whether a layer pools windows of 2x2 pixels that touch."""
    return (
        pair(module.kernel_size) == pair(module.stride) == (2, 2)
        and pair(module.padding) == (0, 0)
        and pair(module.dilation) == (1, 1)
        and not module.return_indices
    )


def pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return a setting of both axes."""
    return (value, value) if isinstance(value, int) else tuple(value)
