"""Every registered loss turns logits and a batch into one finite number with a gradient."""

from __future__ import annotations

import math

import pytest
import torch

from trimtab.data.dataset import Batch
from trimtab.train.losses import LOSSES


def batch() -> tuple[torch.Tensor, Batch]:
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]], requires_grad=True)
    targets = torch.tensor([0, 2])
    return logits, Batch(torch.zeros(2, 1, 4, 4), targets, torch.arange(2))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_loss_is_one_finite_number_with_a_gradient(name: str) -> None:
    logits, samples = batch()
    value = LOSSES[name](logits, samples)
    value.backward()
    assert value.shape == ()
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
    assert LOSSES[name].__doc__


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_agrees_with_its_formula(smoothing: float) -> None:
    logits, samples = batch()
    logp = torch.log_softmax(logits.detach().double(), dim=1)
    wanted = torch.full((2, 3), smoothing / 3, dtype=torch.float64)
    wanted[torch.arange(2), samples.targets] += 1 - smoothing
    value = LOSSES["cross_entropy"](logits, samples, label_smoothing=smoothing)
    assert math.isclose(value.item(), -(wanted * logp).sum(1).mean().item(), rel_tol=1e-6)
