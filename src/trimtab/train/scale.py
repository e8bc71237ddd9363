"""The one look at all gradients before an update, and the factor that fp16 needs on the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FIRST_FACTOR = 2.0**16
GROWTH_STEPS = 2000


class Scale:
    """Say whether gradients are finite, and divide out the factor of the loss: 1 but for fp16.

    Gradients of fp16 below 6e-8 would vanish, so the loss is multiplied before the backward pass.
    The factor halves where that overflows and doubles after `GROWTH_STEPS` updates without it
    (Micikevicius et al. 2018, section 3.2; the numbers are those of torch.amp.GradScaler, whose
    kernel this is: all tensors are looked at and divided in one pass). `skipped` counts the steps
    that overflowed.
    """

    def __init__(self, device: torch.device, *, factor: float = 1.0) -> None:
        self.factor, self.fixed = factor, factor == 1
        self.clean = self.skipped = 0
        self.other: dict[str, Any] = {}
        self.found = torch.zeros((), device=device)
        self.inverse = torch.full((), 1 / factor, device=device)

    def unscale(self, tensors: list[Tensor]) -> bool:
        """Divide the tensors by the factor in place; return whether all values are finite.

        It waits for the device: an update must not happen before the answer is known.
        """
        if tensors:
            torch._amp_foreach_non_finite_check_and_unscale_(tensors, self.found, self.inverse)
        finite = not self.found.item()
        if not finite:
            self.found.zero_()
        if not self.fixed:
            self.adapt(finite)
        return finite

    def adapt(self, finite: bool) -> None:
        """Halve the factor after an overflow, double it after many updates without one."""
        self.clean = self.clean + 1 if finite else 0
        self.skipped += not finite
        if not finite:
            self.set(self.factor / 2)
        elif self.clean == GROWTH_STEPS:
            self.clean = 0
            self.set(self.factor * 2)

    def set(self, factor: float) -> None:
        """Use `factor` from the next step on."""
        self.factor = factor
        self.inverse.fill_(1 / factor)

    def facts(self) -> dict[str, Any]:
        """Return what `restore` needs, as plain values."""
        return self.other or {"factor": self.factor, "clean": self.clean, "skipped": self.skipped}

    def restore(self, facts: dict[str, Any]) -> None:
        """Go on from what `facts` returned.

        A fixed scale only keeps the facts of another precision, for a machine where they count.
        """
        if self.fixed:
            self.other = facts
            return
        self.clean, self.skipped = facts["clean"], facts["skipped"]
        self.set(facts["factor"])


def scale_for(precision: str, device: torch.device) -> Scale:
    """Return the scale that a precision needs."""
    return Scale(device, factor=FIRST_FACTOR if precision == "fp16" else 1.0)
