"""Convolutions on narrow maps, computed as products of matrices where that is quicker.

oneDNN goes line by line, and keeps its units for matrices nearly idle where a line has few pixels:
those of AMX take 32 at once to sum the gradient of a weight, and 16 otherwise. Here all lines of
many pictures are one product, at the price of copying what each pixel saw.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trimtab.models.columns import both_gradients, convolved, kernel_of, weight_gradient
from trimtab.models.correlate import Pair, Place

FEWEST_CHANNELS = 64  # of the inputs; below, the copies cost what the product saves
NARROW = 3  # pixels in a line of the outputs
NARROW_TILES = 8  # the same in bf16 where there is AMX
NARROWEST_TILES = 5  # there, also for the outputs and the gradient of the inputs
TILES = torch.cpu._is_amx_tile_supported()  # asked here, since torch cannot compile the question


class Narrow(nn.Conv2d):
    """A convolution that is trained by products of matrices where its outputs are narrow."""

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W'), in bf16 where autocast says so."""
        if not self.training:
            return super().forward(features)
        place = (self.stride, self.padding, self.dilation)
        return convolve(features, self.weight, self.bias, place)  # type: ignore[arg-type]


def convolve(features: Tensor, weight: Tensor, bias: Tensor | None, place: Place) -> Tensor:
    """Convolve by a weight (C', C, h, w) as torch does, in what is the quicker way to train it."""
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
    longest = NARROW_TILES if has_tiles(features) else NARROW
    return weight.shape[1] >= FEWEST_CHANNELS and width(features, weight, place) <= longest


def width(features: Tensor, weight: Tensor, place: Place) -> int:
    """Return how many pixels a line of the outputs has."""
    (_, stride), (_, padding), (_, dilation) = place
    span = dilation * (weight.shape[3] - 1) + 1
    return (features.shape[3] + 2 * padding - span) // stride + 1


def has_tiles(features: Tensor) -> bool:
    """Return whether the processor has units for products of matrices of this precision."""
    return TILES and features.dtype == torch.bfloat16


class NarrowConvolution(torch.autograd.Function):
    """Convolve in the features' precision; the gradient of the weight is always a product."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair,
        padding: Pair, dilation: Pair,
    ) -> Tensor:  # fmt: skip
        """Return the outputs (N, C', H', W')."""
        low, place = weight.to(features.dtype), (stride, padding, dilation)
        ctx.save_for_backward(features, low)
        ctx.place, ctx.kind = place, weight.dtype
        bias = None if bias is None else bias.to(features.dtype)
        if has_tiles(features) and width(features, low, place) <= NARROWEST_TILES:
            return convolved(features, low, bias, place)
        return torch.convolution(features, low, bias, *place, False, (0, 0), 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of features, weight and bias."""
        (features, weight), outer = ctx.saved_tensors, grads[0]
        for_features, for_weight, for_bias, *_ = ctx.needs_input_grad
        inner = by_weight = by_bias = None
        if for_features and for_weight and turns_round(outer, features, ctx.place):
            inner, by_weight = both_gradients(outer, features, weight, ctx.place)
        elif for_weight:
            by_weight = weight_gradient(outer, features, kernel_of(weight), ctx.place)
        if for_features and inner is None:
            inner = torch.ops.aten.convolution_backward(
                outer, features, weight, None, *ctx.place, False, (0, 0), 1, (True, False, False)
            )[0]
        if by_weight is not None:
            by_weight = by_weight.to(ctx.kind)
        if for_bias:
            by_bias = outer.sum((0, 2, 3), dtype=torch.float32)
        return inner, by_weight, by_bias, None, None, None


def turns_round(outer: Tensor, features: Tensor, place: Place) -> bool:
    """Return whether one copy serves both gradients, and that is the quicker way."""
    alike = max(place[0]) == 1 and outer.shape[2:] == features.shape[2:]
    return alike and has_tiles(features) and outer.shape[3] <= NARROWEST_TILES


def is_dense(module: nn.Conv2d) -> bool:
    """Return whether a layer is a plain convolution of several pixels."""
    return (
        module.groups == 1
        and module.kernel_size != (1, 1)
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )
