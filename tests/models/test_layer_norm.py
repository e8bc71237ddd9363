"""Layer norms by the package's own C++ give what torch's give."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.layers.norm import LayerNorm, LayerNorm2d
from torch import nn

from tests.models.passing import passed
from trimtab.models.layer_norm import MapNorm, RowNorm
from trimtab.models.quick import quick_layers

ROWS: list[Any] = [nn.LayerNorm, LayerNorm, lambda channels: nn.LayerNorm(channels, bias=False),
                   lambda channels: nn.LayerNorm(channels, elementwise_affine=False)]  # fmt: skip
SIZES = [(4, 6, 8), (2, 1), (3, 5, 17), (7, 40), (2, 3, 3, 100), (600, 64)]


def sided(layer: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for one in layer.parameters():
        nn.init.normal_(one)
    return layer


def compared(layer: nn.Module, features: torch.Tensor, kind: type[nn.Module]) -> None:
    exact = copy.deepcopy(layer).double()
    wanted = passed(exact, features.double(), low=False)
    usual = passed(copy.deepcopy(layer), features.bfloat16(), low=True)
    before = type(layer)
    with quick_layers(layer):
        assert isinstance(layer, kind)
        got = passed(layer, features, low=False)
        low = passed(layer, features.bfloat16(), low=True)
    assert type(layer) is before
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
    exact_low = passed(exact, features.bfloat16().double(), low=False)
    assert [one.dtype for one in low] == [one.dtype for one in usual]
    for one, other, right in zip(low, usual, exact_low, strict=True):
        error = (one.double() - right).norm()
        assert error <= 1.2 * (other.double() - right).norm() + 1e-3 * right.norm()


@pytest.mark.parametrize("made", ROWS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rows_are_normed_as_in_double_precision(made: Any, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    compared(sided(made(size[-1])), torch.randn(size) * 3 + 2, RowNorm)


@pytest.mark.parametrize("size", [(4, 8, 6, 7), (2, 17, 3, 3), (2, 40, 9, 9)], ids=str)
def test_maps_are_normed_over_their_channels(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    features = torch.randn(size).contiguous(memory_format=torch.channels_last)
    compared(sided(LayerNorm2d(size[1])), features, MapNorm)


def test_a_row_far_from_zero_keeps_its_variance() -> None:
    torch.manual_seed(0)
    features, layer = torch.randn(5, 64) + 1e4, nn.LayerNorm(64)
    wanted = layer.double()(features.double())
    with quick_layers(layer.float()):
        torch.testing.assert_close(layer(features).double(), wanted, rtol=1e-3, atol=1e-3)


def test_norms_over_several_axes_are_left_alone() -> None:
    with quick_layers(layer := nn.LayerNorm((4, 8))):
        assert type(layer) is nn.LayerNorm


@pytest.mark.parametrize("change", ["double", "expanded", "whole eps"])
def test_unusual_weights_give_what_torch_gives(change: str) -> None:
    layer, features = nn.LayerNorm(8, eps=1), torch.randn(5, 8)
    if change == "double":
        layer, features = layer.double(), features.double()
    elif change == "expanded":
        layer.weight = nn.Parameter(torch.ones(1).expand(8))
    wanted = layer(features)
    with quick_layers(layer):
        torch.testing.assert_close(layer(features), wanted)


def test_evaluation_and_other_orders_of_memory_go_the_usual_way() -> None:
    layer, maps = nn.LayerNorm(8), LayerNorm2d(8)
    inputs = ((layer, torch.randn(4, 8), False), (layer, torch.randn(8, 4).t(), True),
              (maps, torch.randn(2, 8, 3, 3), True))  # fmt: skip
    for one, features, training in inputs:
        one.train(training)
        wanted = one(features)
        with quick_layers(one):
            assert torch.equal(one(features), wanted)
