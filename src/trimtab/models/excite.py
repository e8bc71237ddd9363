"""Squeeze-and-excitation with one gradient where torch adds up two, by the package's own C++.

The features are used twice: their means make the gate, and the gate multiplies them. The gradient
of the second use waits for that of the first, so that both are written at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trimtab.models.kernels import bfloat, call, has_rows, like, suits

Waiting = dict[str, Tensor]
# The parts of a block between the means and the gate, by the full name of its class.
PARTS = {
    "timm.models._efficientnet_blocks.SqueezeExcite":
        ("conv_reduce", "act1", "conv_expand", "gate"),
    "torchvision.ops.misc.SqueezeExcitation": ("fc1", "activation", "fc2", "scale_activation"),
}  # fmt: skip


class Excite(nn.Module):
    """What makes a block of its class a quick one; `between` means and gate are these parts."""

    between: tuple[str, ...] = ()

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        if not (self.training and suits(features) and has_rows(features)):
            return super().forward(features)  # type: ignore[no-any-return]
        waiting: Waiting = {}
        gate = Means.apply(features, waiting)
        for part in self.between:
            gate = self.get_submodule(part)(gate)
        assert gate.shape == (*features.shape[:2], 1, 1)
        return Gated.apply(features, gate, waiting)  # type: ignore[no-any-return]


class Means(torch.autograd.Function):
    """The means over the maps; its gradient is that of all that was made of the features."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, waiting: Waiting) -> Tensor:
        """Return the means (N, C, 1, 1)."""
        ctx.waiting, ctx.maps = waiting, maps_of(features)
        sums = torch.empty(*features.shape[:2], 1, 1)
        call("sum_pixels", features, None, sums, ctx.maps, bfloat(features))
        return sums.div_(ctx.maps[1]).to(features.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the features."""
        outer, gate = ctx.waiting.pop("outer"), ctx.waiting.pop("gate")
        inner, shifts = torch.empty_like(outer), grads[0].float().contiguous() / ctx.maps[1]
        call("scale_pixels", outer, gate, shifts, inner, ctx.maps, bfloat(outer))
        return inner, None


class Gated(torch.autograd.Function):
    """Features times a gate of each sample and channel; leaves their gradient to the means."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, gate: Tensor, waiting: Waiting) -> Tensor:
        """Return the products (N, C, H, W)."""
        outputs, factors = torch.empty_like(features), gate.float().contiguous()
        call("scale_pixels", features, factors, None, outputs, maps_of(features), bfloat(features))
        ctx.save_for_backward(features, factors)
        ctx.waiting, ctx.kind = waiting, gate.dtype
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        """Return the gradient of the gate; what the features need of this waits."""
        features, factors = ctx.saved_tensors
        outer, by_gate = like(grads[0], features), torch.empty_like(factors)
        call("sum_pixels", outer, features, by_gate, maps_of(features), bfloat(features))
        ctx.waiting.update(outer=outer, gate=factors)
        return None, by_gate.to(ctx.kind), None


def maps_of(features: Tensor) -> tuple[int, int, int]:
    """Return samples, pixels and channels."""
    samples, channels, height, width = features.shape
    return samples, height * width, channels
