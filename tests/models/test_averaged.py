"""The mean over a map and its gradient are those of torch, in the order of the map."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.models.passing import passed
from trimtab.models.averaged import GlobalAverage, is_global
from trimtab.models.quick import quick_layers

SIZES = [(4, 8, 7, 5), (1, 1, 1, 1), (3, 1, 4, 4), (2, 5, 1, 9), (2, 33, 8, 8)]


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_means_and_gradients_are_those_of_torch(size: tuple[int, ...], low: bool) -> None:
    features = torch.randn(size).to(torch.bfloat16 if low else torch.float32)
    features = features.to(memory_format=torch.channels_last)
    usual, quick = nn.AdaptiveAvgPool2d(1), nn.AdaptiveAvgPool2d(1)
    wanted = passed(usual, features, low=low)
    with quick_layers(quick):
        assert type(quick) is GlobalAverage
        got = passed(quick, features, low=low)
    assert type(quick) is nn.AdaptiveAvgPool2d
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_the_gradient_lies_in_memory_as_the_map_does() -> None:
    seen = []
    features = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    active = features.relu()
    active.register_hook(lambda outer: seen.append(outer.stride()))
    layer = nn.AdaptiveAvgPool2d(1)
    with quick_layers(layer):
        layer(active).sum().backward()
    assert seen == [features.stride()]


@pytest.mark.parametrize("size", [(4, 8, 7, 5), (8, 7, 5)])
def test_other_orders_and_single_pictures_go_the_usual_way(size: tuple[int, ...]) -> None:
    features, layer = torch.randn(size), nn.AdaptiveAvgPool2d((1, 1))
    wanted = layer(features)
    with quick_layers(layer):
        assert torch.equal(layer(features), wanted)


@pytest.mark.parametrize(("size", "whole"), [(1, True), ((1, 1), True), (2, False),
                                             ((1, None), False), ((1, 2), False)])  # fmt: skip
def test_only_means_over_the_whole_map_are_meant(
    size: int | tuple[int | None, int | None], whole: bool
) -> None:
    layer = nn.AdaptiveAvgPool2d(size)
    assert is_global(layer) == whole
    with quick_layers(layer):
        assert (type(layer) is GlobalAverage) == whole


def test_the_graph_that_torch_compiles_gives_the_same() -> None:
    features = torch.randn(4, 8, 5, 5).to(memory_format=torch.channels_last)
    layer = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    wanted = passed(copy.deepcopy(layer), features, low=False)
    with quick_layers(layer):
        found = passed(torch.compile(layer, backend="aot_eager", fullgraph=True), features,
                       low=False)  # fmt: skip
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)
