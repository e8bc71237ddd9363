"""One pass forward and back through a layer."""

from __future__ import annotations

import torch
from torch import nn


def passed(layer: nn.Module, features: torch.Tensor, *, low: bool) -> list[torch.Tensor]:
    """Return the outputs and the gradients of inputs and parameters, in bf16 where `low`."""
    layer.zero_grad()
    features = features.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        outputs = layer(features)
    generator = torch.Generator().manual_seed(1)
    (outputs.float() * torch.randn(outputs.shape, generator=generator)).sum().backward()
    found = [outputs.detach(), features.grad, *(one.grad for one in layer.parameters())]
    return [one.clone() for one in found if one is not None]
