"""Optimizers: parameter groups and settings to a torch optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Groups = list[dict[str, Any]]
PEAK_LEARNING_RATE = {"adamw": 3e-3, "sgd": 0.1}


def parameter_groups(network: nn.Module, weight_decay: float) -> Groups:
    """Return two groups: weights with decay, norms and biases without (He et al. 2019)."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]


def adamw(groups: Groups, *, lr: float, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019); beta1 is `momentum`."""
    return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999))


def sgd(groups: Groups, *, lr: float, momentum: float = 0.9) -> torch.optim.Optimizer:
    """Stochastic gradient descent with Nesterov momentum (Sutskever et al. 2013)."""
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": adamw, "sgd": sgd}
