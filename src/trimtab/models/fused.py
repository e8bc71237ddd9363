"""Batch norms together with the activation behind them, and activations, by the package's own C++.

Both go over the features in two passes forward and two backward, where torch has passes for each,
and is slow with few channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trimtab.models.kernels import bfloat, call, fit, floats, has_rows, like, suits

SAME, RELU, GELU, SILU, HARDSWISH = range(5)  # as vectors.h numbers them
KINDS = {
    "torch.nn.modules.activation.ReLU": RELU, "torch.nn.modules.activation.GELU": GELU,
    "torch.nn.modules.activation.SiLU": SILU, "torch.nn.modules.activation.Hardswish": HARDSWISH,
    "timm.layers.activations.GELU": GELU, "timm.layers.activations.Swish": SILU,
    "timm.layers.activations.HardSwish": HARDSWISH,
}  # fmt: skip
IN_FP32 = (GELU,)  # what is quick alone in fp32, too: torch's others are as fast there


class Normed(torch.autograd.Function):
    """A batch norm by the batch's own moments, and the activation behind it."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weight: Tensor | None, bias: Tensor | None, moments: Tensor,
        eps: float, activation: int,
    ) -> Tensor:  # fmt: skip
        """Return the outputs (N, C, H, W); sets `moments` (2, C) to means and variances."""
        outputs, channels = torch.empty_like(features), features.shape[1]
        ctx.save_for_backward(features, weight, bias)
        ctx.moments, ctx.settings = moments, (features.numel() // channels, channels, eps,
                                              activation, bfloat(features))  # fmt: skip
        call("norm_forward", features, outputs, weight, bias, moments, *ctx.settings)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of features, weight and bias."""
        features, weight, bias = ctx.saved_tensors
        outer, inner = like(grads[0], features), torch.empty_like(features)
        by_weight, by_bias = by_both = floats(*ctx.moments.shape)
        call("norm_backward", features, outer, inner, weight, bias, ctx.moments, by_both,
             *ctx.settings)  # fmt: skip
        return (inner, None if weight is None else by_weight, None if bias is None else by_bias,
                None, None, None)  # fmt: skip


class Activated(torch.autograd.Function):
    """An activation of features, or of the sum of two, each of which gets the same gradient.

    It keeps what torch keeps: the outputs of a ReLU, else the inputs.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, other: Tensor | None, activation: int, in_place: bool
    ) -> Tensor:
        """Return the outputs, in the order of memory of the features, or in their place."""
        outputs = features if in_place else torch.empty_like(features)
        if in_place:
            ctx.mark_dirty(features)
        ctx.settings = features.numel(), activation, bfloat(features)
        call("activate", features, other, outputs, *ctx.settings)
        ctx.save_for_backward(*((outputs, None) if activation == RELU else (features, other)))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Return the gradients of the two, which are the same."""
        features, other = ctx.saved_tensors
        inner = torch.empty_like(features)
        call("activate_backward", features, other, like(grads[0], features), inner, *ctx.settings)
        return inner, inner if ctx.needs_input_grad[1] else None, None, None


class Norm(nn.Module):
    """What makes a batch norm of its class a quick one; `behind` is its own activation, if any."""

    behind = SAME
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor | None
    momentum: float | None
    eps: float
    track_running_stats: bool

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        if self.takes(features):
            return self.with_activation(features, self.behind)
        return super().forward(features)  # type: ignore[no-any-return]

    def takes(self, features: Tensor) -> bool:
        """Return whether the C++ takes features, of more than one row, in training."""
        channels = len(self.running_mean)
        return (
            self.training
            and self.momentum is not None
            and suits(features)
            and has_rows(features)
            and features.shape[1] == channels < features.numel()
            and fit((self.weight, self.bias, self.running_mean, self.running_var), channels)
        )

    def with_activation(self, features: Tensor, activation: int) -> Tensor:
        """Return the activation of the normed features; the running moments follow theirs.

        They stay while `track_running_stats` is false, as those of torch's own norms do.
        """
        moments = floats(2, features.shape[1])
        outputs = Normed.apply(
            features, self.weight, self.bias, moments, float(self.eps), activation
        )
        if self.track_running_stats:
            self.follow(moments, features.numel() // features.shape[1])
        return outputs  # type: ignore[no-any-return]

    @torch.no_grad()
    def follow(self, moments: Tensor, rows: int) -> None:
        """Let the running moments follow those of a batch of so many rows."""
        assert self.momentum is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(moments[0], self.momentum)
        self.running_var.lerp_(moments[1] * (rows / (rows - 1)), self.momentum)


class Activation(nn.Module):
    """What makes an activation of its class a quick one."""

    behind = SAME

    @property
    def in_place(self) -> bool:
        """Whether the outputs take the place of the features."""
        return bool(getattr(self, "inplace", False))

    def forward(self, features: Tensor) -> Tensor:
        """Map features to the same shape."""
        pays = self.behind in IN_FP32 or features.dtype != torch.float32
        if self.training and pays and suits(features):
            return Activated.apply(features, None, self.behind, self.in_place)  # type: ignore[no-any-return]
        return super().forward(features)  # type: ignore[no-any-return]


def of_norm(activation: nn.Module, norm: nn.Module, features: Tensor) -> Tensor:
    """Return the activation of the normed features, both at once where both are quick."""
    if isinstance(activation, Activation) and isinstance(norm, Norm) and norm.behind == SAME:
        free = activation.training and not (watched(activation) or watched(norm))
        if free and norm.takes(features):
            return norm.with_activation(features, activation.behind)
    return activation(norm(features))  # type: ignore[no-any-return]


def of_sum(activation: nn.Module, one: Tensor, other: Tensor) -> Tensor:
    """Return the activation of the sum of two features, in one pass where it is a quick one."""
    alike = (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
    free = activation.training and not watched(activation)
    if isinstance(activation, Activation) and free and alike and suits(one) and suits(other):
        return Activated.apply(one, other, activation.behind, False)  # type: ignore[no-any-return]
    return activation(one + other)  # type: ignore[no-any-return]


def watched(part: nn.Module) -> bool:
    """Return whether hooks, or a `forward` of its own, see or change what a layer gets and gives.

    Then it must be called as torch calls it.
    """
    hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks,
             part._backward_pre_hooks)  # fmt: skip
    return any(hooks) or "forward" in vars(part) or has_global_hooks()


def has_global_hooks() -> bool:
    """Return whether hooks see every module."""
    return nn.modules.module._has_any_global_hook()  # type: ignore[no-any-return]


def is_alone(module: nn.Module) -> bool:
    """Return whether an activation can be a quick one where it stands.

    In place only a ReLU can, whose gradient does not need what was there before.
    """
    number = number_of(module)
    return number != SAME and (number == RELU or not getattr(module, "inplace", False))


def is_norm(module: Any) -> bool:
    """Return whether a layer is a plain batch norm, or timm's with an activation that is known."""
    if type(module) is not nn.BatchNorm2d:
        if kind_of(module) != "timm.layers.norm_act.BatchNormAct2d":
            return False
        known = type(module.act) is nn.Identity or number_of(module.act) != SAME
        inside = watched(module.act) or watched(module.drop)
        if inside or not known or type(module.drop) is not nn.Identity:
            return False
    return bool(module.track_running_stats and module.momentum is not None)


def kind_of(module: nn.Module | None) -> str:
    """Return the full name of a layer's class: libraries are not imported for a question."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def number_of(module: nn.Module | None) -> int:
    """Return the number of an activation; 0 for what is none, or one that the C++ has not."""
    if isinstance(module, nn.GELU) and module.approximate != "none":
        return SAME
    return KINDS.get(kind_of(module), SAME)
