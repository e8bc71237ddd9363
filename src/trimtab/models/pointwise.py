"""Pointwise convolutions as products of matrices where that is quicker, or sound."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FEWEST_CHANNELS = 16  # below, strided ones meet a fault in oneDNN
MOST_ROWS = 8192  # pixels of a batch; above, oneDNN's convolution is more often the quicker


class Pointwise(nn.Conv2d):
    """A 1x1 convolution that multiplies matrices where its maps are small.

    In channels-last order the pixels are the rows of a matrix already. oneDNN's convolution of few
    of them costs more, forward and backward, up to four times as much. With a stride, fewer than 16
    input channels and fp32 its gradient even writes past its workspace on x86
    (uxlfoundation/oneDNN issue 6035, in torch 2.14 and 2.15), whatever the size: every n-th pixel
    is taken first there.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', ceil(H / n), ceil(W / n))."""
        product = few_rows(features)
        if not product and not is_faulty(self):
            return super().forward(features)
        taken = every_nth(features, self.stride)  # type: ignore[arg-type]
        if not product:
            return functional.conv2d(taken, self.weight, self.bias)
        rows = taken.permute(0, 2, 3, 1)
        return functional.linear(rows, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


def every_nth(features: Tensor, stride: tuple[int, int]) -> Tensor:
    """Return every n-th pixel of features (N, C, H, W), in their order of memory."""
    if stride == (1, 1):
        return features
    if features.is_contiguous(memory_format=torch.channels_last):
        return Taken.apply(features, *stride)  # type: ignore[no-any-return]
    return features[:, :, :: stride[0], :: stride[1]]


class Taken(torch.autograd.Function):
    """Every n-th pixel, in channels-last order; so is the gradient, unlike that of a slice."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, down: int, across: int) -> Tensor:
        """Return the pixels taken, (N, C, ceil(H / down), ceil(W / across))."""
        ctx.shape, ctx.steps = features.shape, (down, across)
        taken = features[:, :, ::down, ::across]
        return taken.contiguous(memory_format=torch.channels_last)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the features: 0 for those left out."""
        (outer,), (down, across) = grads, ctx.steps
        inner = torch.empty(ctx.shape, dtype=outer.dtype, device=outer.device,
                            memory_format=torch.channels_last).zero_()  # fmt: skip
        inner[:, :, ::down, ::across] = outer
        return inner, None, None


def few_rows(features: Tensor) -> bool:
    """Return whether features (N, C, H, W) are few pixels in channels-last order, on a processor.

    Over a hundred shapes in bf16 and fp32, with AMX and as without it, took 0.24 to 1.2 times as
    long up to 8,192 pixels, most of them less; above, more were slower than quicker.
    """
    return (
        features.device.type == "cpu"
        and features.numel() <= MOST_ROWS * features.shape[1]
        and features.is_contiguous(memory_format=torch.channels_last)
    )


def is_faulty(layer: nn.Conv2d) -> bool:
    """Return whether the fault can hit this layer."""
    return layer.stride != (1, 1) and layer.in_channels < FEWEST_CHANNELS


def is_pointwise(module: nn.Conv2d) -> bool:
    """Return whether every pixel of a layer's outputs comes from one pixel, in one group."""
    return (
        module.kernel_size == (1, 1)
        and module.padding in ((0, 0), "valid", "same")
        and module.groups == 1
    )
