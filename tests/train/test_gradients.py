"""Gradients are limited, extended and followed uphill as their formulas say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trimtab.train.gradients import ascend, clip, l1_penalty


def parameters_with(*gradients: list[float] | None) -> list[Tensor]:
    found: list[Tensor] = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.tensor([1.0, -2.0, 0.0][: len(gradient or [0])]))
        parameter.grad = None if gradient is None else torch.tensor(gradient)
        found.append(parameter)
    return found


def gradients_of(parameters: list[Tensor]) -> list[float]:
    return torch.cat([one.grad for one in parameters if one.grad is not None]).tolist()


# clip


def test_clip_without_limits_changes_no_bit() -> None:
    parameters = parameters_with([1e30, -3.0], [0.1])
    wanted = gradients_of(parameters)
    clip(parameters)
    assert gradients_of(parameters) == wanted


def test_clip_scales_all_gradients_to_the_norm_together() -> None:
    parameters = parameters_with([3.0, 0.0], None, [4.0])
    clip(parameters, norm=1.0)
    assert gradients_of(parameters) == pytest.approx([0.6, 0, 0.8], abs=1e-5)
    clip(parameters, norm=2.0)
    assert gradients_of(parameters) == pytest.approx([0.6, 0, 0.8], abs=1e-5)


def test_clip_limits_each_value_and_then_the_norm() -> None:
    parameters = parameters_with([3.0, -0.5], [-4.0])
    clip(parameters, value=1.0)
    assert gradients_of(parameters) == [1, -0.5, -1]
    parameters = parameters_with([3.0, -0.5], [-4.0])
    clip(iter(parameters), norm=0.75, value=1.0)
    assert gradients_of(parameters) == pytest.approx([0.5, -0.25, -0.5], abs=1e-5)


# l1_penalty


def test_l1_penalty_adds_the_exact_gradient() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(4, 3), nn.Linear(4, 3)
    other.load_state_dict(one.state_dict())
    inputs = torch.randn(5, 4)
    one(inputs).square().mean().backward()
    l1_penalty([one.weight], 0.01)
    (other(inputs).square().mean() + 0.01 * other.weight.abs().sum()).backward()
    assert one.weight.grad is not None
    assert other.weight.grad is not None
    assert torch.allclose(one.weight.grad, other.weight.grad)
    assert torch.equal(one.bias.grad, other.bias.grad)


def test_l1_penalty_leaves_zeros_and_parameters_without_gradient_alone() -> None:
    parameters = parameters_with([0.0, 0.0, 0.0], None)
    l1_penalty(parameters, 0.5)
    assert gradients_of(parameters) == [0.5, -0.5, 0]
    assert parameters[1].grad is None
    l1_penalty(parameters, 0.0)
    assert gradients_of(parameters) == [0.5, -0.5, 0]


# ascend


def test_ascend_goes_up_the_gradient_by_the_radius_and_comes_back() -> None:
    parameters = parameters_with([3.0, 0.0], None, [4.0])
    before = [one.detach().clone() for one in parameters]
    undo = ascend(iter(parameters), 0.05)
    moved = torch.cat([one - old for one, old in zip(parameters, before, strict=True)])
    assert moved.tolist() == pytest.approx([0.03, 0, 0, 0.04], abs=1e-6)
    undo()
    assert all(torch.equal(one, old) for one, old in zip(parameters, before, strict=True))


def test_ascend_raises_the_loss_it_was_computed_for() -> None:
    torch.manual_seed(0)
    network, inputs = nn.Linear(4, 3), torch.randn(8, 4)
    loss = network(inputs).square().mean()
    loss.backward()
    undo = ascend(network.parameters(), 0.1)
    assert network(inputs).square().mean() > loss
    undo()
    assert torch.equal(network(inputs).square().mean(), loss)


def test_ascend_stays_where_there_is_no_gradient() -> None:
    parameters = parameters_with([0.0, 0.0], None)
    before = [one.detach().clone() for one in parameters]
    undo = ascend(parameters, 0.05)
    assert all(torch.equal(one, old) for one, old in zip(parameters, before, strict=True))
    undo()
    ascend(parameters_with(None), 0.05)()
