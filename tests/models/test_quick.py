"""Convolutions take a quick road inside a block, and are as before after it."""

from __future__ import annotations

import pytest
from torch import nn

from trimtab.models.depthwise import Depthwise
from trimtab.models.narrow import Narrow
from trimtab.models.pointwise import Pointwise
from trimtab.models.quick import quick_layers


class Own(nn.Conv2d):
    """A convolution of somebody's own."""


KINDS = [
    (nn.Conv2d(8, 8, 1, stride=2), Pointwise), (nn.Conv2d(8, 8, 1), Pointwise),
    (nn.Conv2d(8, 8, 3, groups=8), Depthwise), (nn.Conv2d(64, 8, 3), Narrow),
    (nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d), (nn.Conv2d(3, 8, 3), Narrow), (Own(8, 8, 1), Own),
    (nn.Linear(8, 8), nn.Linear),
]  # fmt: skip


def test_each_layer_takes_the_road_of_its_kind_and_only_inside_the_block() -> None:
    layers = nn.Sequential(*(layer for layer, _ in KINDS))
    before = [type(layer) for layer in layers]
    with quick_layers(layers):
        assert [type(layer) for layer in layers] == [kind for _, kind in KINDS]
    assert [type(layer) for layer in layers] == before


def test_an_error_inside_the_block_leaves_the_layers_as_they_were() -> None:
    layer = nn.Conv2d(8, 8, 1)
    with pytest.raises(KeyError), quick_layers(layer):
        raise KeyError
    assert type(layer) is nn.Conv2d
