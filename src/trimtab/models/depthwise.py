"""Lead depthwise convolutions in bf16 around oneDNN's slow gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trimtab.models.correlate import Pair, Place, weight_gradient

LARGEST_QUICK = 3  # side of a kernel whose weight gradient is quick in bf16


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

    In bf16 oneDNN has no quick kernel for the gradient of the inputs of a strided one, which is
    computed in fp32, nor for that of a weight of side 5 and above; all others are quicker in bf16,
    as is the forward pass (`benchmarks/cnn_throughput.py` times networks that have them).
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
        outer, low = grads[0], features.dtype
        inner = by_weight = by_bias = None
        if ctx.needs_input_grad[0]:
            exact = torch.float32 if ctx.place[0] != (1, 1) else low
            like = torch.empty_like(features, dtype=exact)  # its values make no difference
            inner = gradients(ctx.place, outer.to(exact), like, weight.to(exact), 0).to(low)
        if ctx.needs_input_grad[1]:
            by_weight = weight_gradient_of(ctx.place, outer, features, weight).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            by_bias = outer.sum((0, 2, 3), dtype=torch.float32)
        return inner, by_weight, by_bias, None, None, None


def weight_gradient_of(place: Place, outer: Tensor, features: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of the weight, by the quickest way."""
    height, width = weight.shape[2:]
    exact = features.dtype
    if max(height, width) > LARGEST_QUICK:
        found = weight_gradient(outer, features, (height, width), place)
        if found is not None:
            return found
        exact = torch.float32
    return gradients(place, outer.to(exact), features.to(exact), weight.to(exact), 1)


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
