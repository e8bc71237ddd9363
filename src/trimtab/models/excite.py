"""Squeeze-and-excitation whose sums and products go over memory once, by the package's own C++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trimtab.models.averaged import MapAverage
from trimtab.models.kernels import bfloat, call, has_rows, is_taken, like, suits

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
        gate = MapAverage.apply(features)
        for part in self.between:
            gate = self.get_submodule(part)(gate)
        if gate.shape != (*features.shape[:2], 1, 1) or not is_taken(gate):
            return features * gate  # type: ignore[no-any-return]
        return Gated.apply(features, gate)  # type: ignore[no-any-return]


class Gated(torch.autograd.Function):
    """Features times a gate of each sample and channel."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, gate: Tensor) -> Tensor:
        """Return the products (N, C, H, W)."""
        outputs, factors = torch.empty_like(features), gate.float().contiguous()
        call("scale_pixels", features, factors, outputs, maps_of(features), bfloat(features))
        ctx.save_for_backward(features, factors)
        ctx.kind = gate.dtype
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients of features and gate."""
        features, factors = ctx.saved_tensors
        outer, inner = like(grads[0], features), torch.empty_like(features)
        by_gate = torch.empty_like(factors)
        sizes = maps_of(features), bfloat(features)
        call("scale_pixels", outer, factors, inner, *sizes)
        call("sum_products", outer, features, by_gate, *sizes)
        return inner, by_gate.to(ctx.kind)


def maps_of(features: Tensor) -> tuple[int, int, int]:
    """Return samples, pixels and channels."""
    samples, channels, height, width = features.shape
    return samples, height * width, channels
