"""Squeeze-and-excitation by the package's own C++ gives what the libraries' give."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn
from torchvision.ops import SqueezeExcitation

from tests.models.passing import passed
from trimtab.models.excite import Excite
from trimtab.models.quick import quick_layers

BLOCKS: list[Callable[[int], nn.Module]] = [
    lambda channels: SqueezeExcite(channels, rd_channels=4),
    lambda channels: SqueezeExcite(channels, rd_channels=4, gate_layer="hard_sigmoid"),
    lambda channels: SqueezeExcitation(channels, 4),
]
SIZES = [(4, 8, 6, 7), (2, 1, 3, 3), (3, 17, 5, 4), (2, 100, 9, 9), (5, 64, 1, 1)]


def features_of(size: tuple[int, ...]) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(size).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("made", BLOCKS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_outputs_and_gradients_are_those_of_double_precision(
    made: Callable[[int], nn.Module], size: tuple[int, ...]
) -> None:
    block, features = made(size[1]), features_of(size)
    wanted = passed(copy.deepcopy(block).double(), features.double(), low=False)
    with quick_layers(block):
        assert isinstance(block, Excite)
        got = passed(block, features, low=False)
    assert not isinstance(block, Excite)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("made", BLOCKS)
def test_in_bf16_they_are_as_near_as_those_of_torch(made: Callable[[int], nn.Module]) -> None:
    block, features = made(40), features_of((4, 40, 9, 7)).bfloat16()
    exact = passed(copy.deepcopy(block).double(), features.double(), low=False)
    usual = passed(copy.deepcopy(block), features, low=True)
    with quick_layers(block):
        got = passed(block, features, low=True)
    assert [one.dtype for one in got] == [one.dtype for one in usual]
    for one, other, wanted in zip(got, usual, exact, strict=True):
        error = (one.double() - wanted).norm()
        assert error <= 1.5 * (other.double() - wanted).norm() + 1e-2 * wanted.norm()


def test_frozen_inputs_and_frozen_gates_get_the_gradients_they_should() -> None:
    block, features = SqueezeExcite(8, rd_channels=4), features_of((2, 8, 3, 3))
    wanted = passed(block, features, low=False)
    with quick_layers(block):
        block.zero_grad()
        generator = torch.Generator().manual_seed(1)
        (block(features) * torch.randn(features.shape, generator=generator)).sum().backward()
        torch.testing.assert_close(block.conv_reduce.weight.grad, wanted[2])
        block.requires_grad_(False)
        block.zero_grad()
        torch.testing.assert_close(passed(block, features, low=False)[1], wanted[1])


def test_a_gate_that_hooks_take_out_of_the_graph_leaves_the_other_gradient() -> None:
    block, features = SqueezeExcite(8, rd_channels=4), features_of((2, 8, 3, 3))
    block.gate.register_forward_hook(lambda _, __, gate: gate.detach())
    wanted = passed(block, features, low=False)[1]
    with quick_layers(block):
        torch.testing.assert_close(passed(block, features, low=False)[1], wanted)


def test_two_passes_before_the_gradients_do_not_mix() -> None:
    block, first, second = SqueezeExcite(8, rd_channels=4), features_of((2, 8, 3, 3)), None
    second = first.flip(0) + 1
    wanted = [passed(block, one, low=False)[1] for one in (first, second)]
    with quick_layers(block):
        ones = [one.clone().requires_grad_() for one in (first, second)]
        outputs = [block(one) for one in ones]
        for one in outputs:
            generator = torch.Generator().manual_seed(1)
            (one * torch.randn(one.shape, generator=generator)).sum().backward()
    for one, other in zip(ones, wanted, strict=True):
        torch.testing.assert_close(one.grad, other)


def test_evaluation_and_other_orders_of_memory_go_the_usual_way() -> None:
    block = SqueezeExcite(8, rd_channels=4)
    for training, features in ((False, features_of((2, 8, 3, 3))), (True, torch.randn(2, 8, 3, 3))):
        block.train(training)
        wanted = block(features)
        with quick_layers(block):
            assert torch.equal(block(features), wanted)
