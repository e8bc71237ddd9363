"""Layer norms over the channels, which lie one after another, by the package's own C++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trimtab.models.kernels import bfloat, call, fit, floats, like, suits


class RowNorm(nn.Module):
    """What makes a layer norm over the last axis a quick one."""

    eps: float

    def forward(self, features: Tensor) -> Tensor:
        """Map (…, C) to the same shape."""
        if self.training and takes(self, features):
            return LayerNormed.apply(  # type: ignore[no-any-return]
                features, self.weight, self.bias, float(self.eps)
            )
        return super().forward(features)  # type: ignore[no-any-return]


class MapNorm(nn.Module):
    """What makes timm's layer norm of maps, over their channels, a quick one."""

    eps: float

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        rows = features.permute(0, 2, 3, 1)
        if self.training and takes(self, rows):
            normed = LayerNormed.apply(rows, self.weight, self.bias, float(self.eps))
            return normed.permute(0, 3, 1, 2)  # type: ignore[no-any-return]
        return super().forward(features)  # type: ignore[no-any-return]


class LayerNormed(torch.autograd.Function):
    """A layer norm over the last axis."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:  # fmt: skip
        """Return the outputs (…, C)."""
        channels = features.shape[-1]
        outputs, moments = torch.empty_like(features), floats(2, features.numel() // channels)
        ctx.sizes = (moments.shape[1], channels)
        call("layer_norm_forward", features, weight, bias, outputs, moments, *ctx.sizes, eps,
             bfloat(features))  # fmt: skip
        ctx.save_for_backward(features, weight, bias, moments)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of features, weight and bias."""
        features, weight, bias, moments = ctx.saved_tensors
        inner, by_both = torch.empty_like(features), floats(2, ctx.sizes[1])
        call("layer_norm_backward", features, like(grads[0], features), weight, moments, inner,
             by_both, *ctx.sizes, bfloat(features))  # fmt: skip
        by_weight, by_bias = by_both
        return (inner, None if weight is None else by_weight, None if bias is None else by_bias,
                None)  # fmt: skip


def takes(norm: Any, rows: Tensor) -> bool:
    """Return whether the C++ takes rows of channels (…, C) and the weights of a norm."""
    channels = norm.normalized_shape[0]
    return (
        suits(rows)
        and rows.is_contiguous()
        and rows.shape[-1] == channels
        and fit((norm.weight, norm.bias), channels)
    )


# What makes a norm of a class, by its full name, a quick one.
WAYS: dict[str, type[nn.Module]] = {
    "torch.nn.modules.normalization.LayerNorm": RowNorm,
    "timm.layers.norm.LayerNorm": RowNorm,
    "timm.layers.norm.LayerNorm2d": MapNorm,
}


def is_plain(module: nn.LayerNorm) -> bool:
    """Return whether a layer norm is over one axis, and computed as usual."""
    return len(module.normalized_shape) == 1 and not getattr(module, "_fast_norm", False)
