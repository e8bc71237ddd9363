"""Adam over numbers in their order of memory steps as torch's own does without its one kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from trimtab.machine.compiled import uncompiled
from trimtab.train.optimizers import InOrder, InOrderDecoupled, adam, adamw

ORDERS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}
KINDS = [(InOrder, torch.optim.Adam), (InOrderDecoupled, torch.optim.AdamW)]


def stepped(kind: Any, order: Any, gradients: Any, **settings: Any) -> list[Tensor]:
    """Return weights, and what is kept of them, after some steps."""
    torch.manual_seed(0)
    weights = [torch.randn(6, 5, 3, 3).contiguous(memory_format=order), torch.randn(7),
               torch.randn(()), torch.randn(4, 3).t(), torch.randn(3, 1, 5, 5)]  # fmt: skip
    weights = [one.requires_grad_() for one in weights]
    optimizer = kind(weights, lr=1e-2, weight_decay=0.1, **settings)
    for _ in range(3):
        for one in weights:
            one.grad = torch.randn(one.shape)
            if one.ndim == 4:
                one.grad = one.grad.contiguous(memory_format=gradients)
        optimizer.step()
    kept = [value for one in weights for value in optimizer.state[one].values()]
    return [*(one.detach() for one in weights), *kept]


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize("gradients", ORDERS.values(), ids=ORDERS)
@pytest.mark.parametrize(("own", "usual"), KINDS)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_weights_and_states_are_those_of_torch(
    own: Any, usual: Any, order: Any, gradients: Any, amsgrad: bool
) -> None:
    wanted = stepped(usual, order, gradients, foreach=False, amsgrad=amsgrad)
    got = stepped(own, order, gradients, fused=True, amsgrad=amsgrad)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert one.stride() == other.stride()


def test_states_in_another_order_are_still_those_that_change() -> None:
    weight = torch.randn(6, 5, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    optimizer = InOrderDecoupled([weight], lr=1e-2)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    state = optimizer.state[weight]
    state["exp_avg"] = state["exp_avg"].contiguous()
    before = state["exp_avg"].clone()
    optimizer.step()
    assert not torch.equal(state["exp_avg"], before)


def test_the_registered_ones_are_these() -> None:
    groups: Any = [{"params": [torch.zeros(2, requires_grad=True)]}]
    assert isinstance(adam(groups, lr=0.1), InOrder)
    assert isinstance(adamw(groups, lr=0.1), InOrderDecoupled)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RAdam])
def test_steps_without_the_compiler_are_those_of_torch(kind: Any) -> None:
    found = []
    for build in (kind, uncompiled(kind)):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(4, 3))
        optimizer = build([weight], lr=0.1, weight_decay=0.01)
        told: list[int] = []
        optimizer.register_step_post_hook(lambda *_, told=told: told.append(1))
        for _ in range(5):
            optimizer.zero_grad()
            (weight**3).sum().backward()
            optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        found.append((weight.detach(), len(told), optimizer.state_dict()["param_groups"]))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]
    assert found[1][1] == 5
    assert weight.requires_grad
    assert uncompiled(kind) is uncompiled(kind)
