"""What is done with gradients between the backward pass and the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def clip(parameters: Iterable[Tensor], *, norm: float = 0.0, value: float = 0.0) -> None:
    """Limit each gradient to [-value, value], then the norm of all together; 0 is no limit.

    Source of the norm: Pascanu et al. 2013, section 3.2. Nothing waits for the device.
    """
    if value > 0 or norm > 0:
        parameters = list(parameters)
    if value > 0:
        nn.utils.clip_grad_value_(parameters, value)
    if norm > 0:
        nn.utils.clip_grad_norm_(parameters, norm)


@torch.no_grad()
def l1_penalty(parameters: Iterable[Tensor], weight: float) -> None:
    """Add the gradient of `weight` · sum |w|, which is `weight` · sign(w), to the gradients.

    Call it after the backward pass with the parameters that are to become sparse; one without a
    gradient is left out (Tibshirani 1996; 0 is the subgradient at 0).
    """
    if weight == 0:
        return
    held, gradients = with_gradients(parameters)
    if held:
        torch._foreach_add_(gradients, torch._foreach_sign(held), alpha=weight)


@torch.no_grad()
def ascend(parameters: Iterable[Tensor], radius: float) -> Callable[[], None]:
    """Move the weights up their gradient g by `radius` · g / |g|; return what puts them back.

    This is the first half of a step of sharpness-aware minimisation (Foret et al. 2021, equation
    2, p = 2): after it, clear the gradients, do a second forward and backward pass, call what was
    returned, and let the optimizer use the new gradients. The weights come back bit for bit.
    """
    held, gradients = with_gradients(parameters)
    if not held:
        return lambda: None
    before = torch._foreach_clone(held)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    scale = radius / (norm + 1e-12)
    torch._foreach_add_(held, torch._foreach_mul(gradients, scale))

    @torch.no_grad()
    def undo() -> None:
        torch._foreach_copy_(held, before)

    return undo


def with_gradients(parameters: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters that have a gradient, and these gradients."""
    held = [parameter for parameter in parameters if parameter.grad is not None]
    return held, [parameter.grad for parameter in held if parameter.grad is not None]
