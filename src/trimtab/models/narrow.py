"""The weight gradient of convolutions on narrow maps as a product of matrices.

oneDNN sums that gradient line by line, and keeps its units for matrices nearly idle where a line
has few pixels: up to 32 at once with AMX. Here all lines of many pictures are one product, at the
price of copying what each pixel saw.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trimtab.models.correlate import Pair, Place

MOST_COLUMNS = 1 << 23  # numbers copied at once, for the caches' sake
FEWEST_CHANNELS = 64  # of the inputs; below, the copies cost what the product saves
NARROW = 3  # pixels in a line of the outputs
NARROW_TILES = 8  # the same in bf16 where AMX takes 32 of a line at once
TILES = torch.cpu._is_amx_tile_supported()  # asked here, since torch cannot compile the question


class Narrow(nn.Conv2d):
    """A convolution whose weight gradient is a product of matrices where its outputs are narrow."""

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W'), in bf16 where autocast says so."""
        if not self.training:
            return super().forward(features)
        place = (self.stride, self.padding, self.dilation)
        return convolve(features, self.weight, self.bias, place)  # type: ignore[arg-type]


def convolve(features: Tensor, weight: Tensor, bias: Tensor | None, place: Place) -> Tensor:
    """Convolve as torch does, with the quicker gradient of the weight (C', C, h, w)."""
    if features.device.type == "cpu":
        if torch.is_autocast_enabled("cpu"):
            features = features.to(torch.get_autocast_dtype("cpu"))
        if pays(features, weight, place):
            return NarrowConvolution.apply(  # type: ignore[no-any-return]
                features, weight, bias, *place
            )
    return functional.conv2d(features, weight, bias, *place)


def pays(features: Tensor, weight: Tensor, place: Place) -> bool:
    """Return whether the product is the quicker: many channels and a short line of outputs."""
    (_, stride), (_, padding), (_, dilation) = place
    span = dilation * (weight.shape[3] - 1) + 1
    width = (features.shape[3] + 2 * padding - span) // stride + 1
    return weight.shape[1] >= FEWEST_CHANNELS and width <= narrowest(features.dtype)


def narrowest(kind: torch.dtype) -> int:
    """Return how many pixels a line may have for the product to be quicker."""
    return NARROW_TILES if TILES and kind == torch.bfloat16 else NARROW


class NarrowConvolution(torch.autograd.Function):
    """Convolve in the features' precision; only the gradient of the weight goes its own way."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair,
        padding: Pair, dilation: Pair,
    ) -> Tensor:  # fmt: skip
        """Return the outputs (N, C', H', W')."""
        low = weight.to(features.dtype)
        ctx.save_for_backward(features, low)
        ctx.place, ctx.kind = (stride, padding, dilation), weight.dtype
        bias = None if bias is None else bias.to(features.dtype)
        return torch.convolution(features, low, bias, stride, padding, dilation, False, (0, 0), 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of features, weight and bias."""
        (features, weight), outer = ctx.saved_tensors, grads[0]
        inner = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            inner = torch.ops.aten.convolution_backward(
                outer, features, weight, None, *ctx.place, False, (0, 0), 1, (True, False, False)
            )[0]
        if ctx.needs_input_grad[1]:
            found = by_columns(outer, features, (weight.shape[2], weight.shape[3]), ctx.place)
            by_weight = found.to(ctx.kind)
        if ctx.needs_input_grad[2]:
            by_bias = outer.sum((0, 2, 3), dtype=torch.float32)
        return inner, by_weight, by_bias, None, None, None


def by_columns(outer: Tensor, features: Tensor, kernel: Pair, place: Place) -> Tensor:
    """Return the gradient of a weight (C', C, h, w), summed in fp32 over parts of the batch.

    `outer` (N, C', H', W') is the gradient of what the layer made of `features` (N, C, H, W).
    """
    samples, channels, height, width = outer.shape
    _, (down, across), _ = place
    padded = functional.pad(features, (across, across, down, down)).permute(0, 2, 3, 1).contiguous()
    asked = outer.permute(0, 2, 3, 1)
    depth = padded.shape[3]
    each = max(1, MOST_COLUMNS // (height * width * kernel[0] * kernel[1] * depth))
    found = None
    for first in range(0, samples, each):
        rows = asked[first : first + each].flatten(0, 2)
        seen = windows(padded[first : first + each], kernel, place)
        part = rows.t() @ seen.reshape(len(rows), -1)
        found = part if found is None else found.float() + part
    assert found is not None
    return found.view(channels, *kernel, depth).permute(0, 3, 1, 2)


def windows(padded: Tensor, kernel: Pair, place: Place) -> Tensor:
    """Return a view of what each output pixel saw, (N, H', W', h, w, C), of (N, H, W, C)."""
    stride, _, dilation = place
    for axis in range(2):
        span = dilation[axis] * (kernel[axis] - 1) + 1
        padded = padded.unfold(1 + axis, span, stride[axis])[..., :: dilation[axis]]
    return padded.permute(0, 1, 2, 4, 5, 3)


def is_dense(module: nn.Conv2d) -> bool:
    """Return whether a layer is a plain convolution of several pixels."""
    return (
        module.groups == 1
        and module.kernel_size != (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )
