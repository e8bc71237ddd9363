"""Every registered optimizer takes groups and settings and makes the loss smaller."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trimtab.train.optimizers import OPTIMIZERS, PEAK_LEARNING_RATE, parameter_groups


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimizer_learns_a_line(name: str) -> None:
    torch.manual_seed(0)
    network, inputs = nn.Linear(4, 1), torch.randn(64, 4)
    wanted = inputs.sum(dim=1, keepdim=True)
    optimizer = OPTIMIZERS[name](
        parameter_groups(network, 0.0), lr=PEAK_LEARNING_RATE[name], momentum=0.9
    )
    first = (network(inputs) - wanted).square().mean().item()
    for _ in range(200):
        loss = (network(inputs) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_optimizer_is_documented_and_has_a_usual_peak(name: str) -> None:
    assert OPTIMIZERS[name].__doc__
    assert PEAK_LEARNING_RATE[name] > 0


def test_norms_and_biases_do_not_decay() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    decayed, plain = parameter_groups(network, 0.1)
    assert [p.shape for p in decayed["params"]] == [(4, 1, 3, 3)]
    assert decayed["weight_decay"] == 0.1
    assert len(plain["params"]) == 3
    assert plain["weight_decay"] == 0
