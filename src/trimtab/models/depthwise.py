"""Lead depthwise convolutions in bf16 around oneDNN's slow gradients."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.models.correlate import Pair, Place, weight_gradient
from trimtab.models.kernels import bfloat, call, floats, has_rows, is_here, suits

LARGEST_QUICK = 3  # side of a kernel whose weight gradient is quick in bf16
FEWEST_PIXELS = 36  # of a map; below, products of matrices are the quicker


class Depthwise(nn.Conv2d):
    """A depthwise convolution whose slow gradients are computed another way."""

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W'), in bf16 where autocast says so."""
        if not (features.device.type == "cpu" and torch.is_autocast_enabled("cpu")):
            return super().forward(features)
        lowered = features.to(torch.get_autocast_dtype("cpu"))
        return MixedDepthwise.apply(  # type: ignore[no-any-return]
            lowered, self.weight, self.bias, self.stride, self.padding, self.dilation
        )


class MixedDepthwise(torch.autograd.Function):
    """Convolve in the features' precision; some gradients, by shape, another way.

    In bf16 oneDNN has no quick kernel for the gradient of the inputs of a strided one, nor for that
    of a weight of side 5 and above. The package's own C++ computes them where it is here and that
    is the quicker; else the first is computed in fp32, the second by products of matrices. All
    others are quicker in bf16, as is the forward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair,
        padding: Pair, dilation: Pair,
    ) -> Tensor:  # fmt: skip
        """Return the outputs (N, C', H', W')."""
        ctx.save_for_backward(features, weight)
        ctx.place = (stride, padding, dilation)
        low = None if bias is None else bias.to(features.dtype)
        return torch.convolution(features, weight.to(features.dtype), low, stride, padding,
                                 dilation, False, (0, 0), features.shape[1])  # fmt: skip

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of features, weight and bias."""
        features, weight = ctx.saved_tensors
        outer = grads[0]
        inner = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            inner = inner_gradient_of(ctx.place, outer, features, weight)
        if ctx.needs_input_grad[1]:
            by_weight = weight_gradient_of(ctx.place, outer, features, weight).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            by_bias = outer.sum((0, 2, 3), dtype=torch.float32)
        return inner, by_weight, by_bias, None, None, None


def inner_gradient_of(place: Place, outer: Tensor, features: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the features, by the quickest way."""
    exact = features.dtype
    if place[0] != (1, 1):
        if max(weight.shape[2:]) <= LARGEST_QUICK and counts(features, weight):
            return inner_counted(place, outer, features, weight)
        exact = torch.float32
    like = torch.empty_like(features, dtype=exact)  # its values make no difference
    return gradients(place, outer.to(exact), like, weight.to(exact), 0).to(features.dtype)


def weight_gradient_of(place: Place, outer: Tensor, features: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the weight, by the quickest way."""
    height, width = weight.shape[2:]
    exact = features.dtype
    if max(height, width) > LARGEST_QUICK:
        if features[0, 0].numel() >= FEWEST_PIXELS and counts(features, weight):
            return weight_counted(place, outer, features, weight)
        found = weight_gradient(outer, features, (height, width), place)
        if found is not None:
            return found
        exact = torch.float32
    return gradients(place, outer.to(exact), features.to(exact), weight.to(exact), 1)


def counts(features: Tensor, weight: Tensor) -> bool:
    """Return whether the package's own C++ can compute gradients of a layer."""
    return suits(features) and has_rows(features) and is_here() and len(weight) == features.shape[1]


def weight_counted(place: Place, outer: Tensor, features: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the weight, in fp32, by the package's own C++."""
    found = floats(*weight.shape)
    call("depthwise_weight", features, lines(outer, features), found,
         layer_of(place, outer, features, weight), bfloat(features))  # fmt: skip
    return found


def inner_counted(place: Place, outer: Tensor, features: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the features by the package's own C++."""
    inner = torch.empty_like(features)
    call("depthwise_inner", lines(outer, features), weight.float().contiguous(), inner,
         layer_of(place, outer, features, weight), bfloat(features))  # fmt: skip
    return inner


def lines(outer: Tensor, features: Tensor) -> Tensor:
    """Return a gradient as rows of channels, in the precision of the features."""
    return outer.to(features.dtype).contiguous(memory_format=torch.channels_last)


def layer_of(place: Place, outer: Tensor, features: Tensor, weight: Tensor) -> tuple[int, ...]:
    """Return sizes and places as the C++ lists them."""
    return (*features.shape, *outer.shape[2:], *weight.shape[2:], *chain.from_iterable(place))


def gradients(place: Place, outer: Tensor, features: Tensor, weight: Tensor, which: int) -> Tensor:
    """Return the gradient of the features (`which` 0) or of the weight (1)."""
    stride, padding, dilation = place
    found = torch.ops.aten.convolution_backward(
        outer, features, weight, None, stride, padding, dilation, False, (0, 0),
        features.shape[1], (which == 0, which == 1, False),
    )  # fmt: skip
    return found[which]  # type: ignore[no-any-return]


def is_depthwise(module: nn.Conv2d) -> bool:
    """Return whether a layer is a plain depthwise convolution."""
    return (
        module.groups == module.in_channels > 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )
