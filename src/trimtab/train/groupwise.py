"""The skeleton of optimizers of our own: one move per group of parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Groupwise(torch.optim.Optimizer):
    """Step by calling `move` with those parameters of each group that have a gradient."""

    def move(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Move the parameters of one group; a subclass says how."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Do one step with the gradients that are there; return what `closure` gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [one for one in group["params"] if one.grad is not None]
            if parameters:
                self.move(parameters, group)
        return loss
