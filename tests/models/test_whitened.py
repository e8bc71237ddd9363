"""Whitened networks: what pooling drops is not computed, and deep stages add to their maps."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from trimtab.models import narrow
from trimtab.models.whitened import PooledConv2d, stage, wcnn_deep, wcnn_small
from trimtab.records.schema import Schema
from trimtab.train.muon import SCALE_FREE, roles_of


def outputs_and_gradients(network: nn.Module, inputs: Tensor) -> list[Tensor]:
    outputs = network(inputs)
    gradients = torch.autograd.grad(outputs.square().sum(), [inputs, *network.parameters()])
    return [outputs, *gradients]


@pytest.mark.parametrize("side", [17, 24, 32])
def test_what_pooling_drops_is_not_computed_and_not_missed(colour: Schema, side: int) -> None:
    torch.manual_seed(0)
    network = wcnn_small(colour.model_copy(update={"height": 32, "width": 32})).train()
    plain = copy.deepcopy(network)
    for module in plain.modules():
        if isinstance(module, PooledConv2d):
            module.__class__ = nn.Conv2d
    inputs = torch.randn(4, 3, side, side, requires_grad=True)
    for found, wanted in zip(outputs_and_gradients(network, inputs),
                             outputs_and_gradients(plain, inputs), strict=True):  # fmt: skip
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_narrow_pooled_maps_have_a_product_for_the_gradient_of_their_weight() -> None:
    torch.manual_seed(0)
    layer = PooledConv2d(64, 8, 3, padding=1, bias=False).train()
    maps = torch.randn(4, 64, 3, 3, requires_grad=True)
    wanted = torch.autograd.grad(nn.functional.conv2d(maps, layer.weight, padding=1)[..., :2, :2]
                                 .square().sum(), [maps, layer.weight])  # fmt: skip
    with mock.patch.object(narrow, "weight_gradient", wraps=narrow.weight_gradient) as called:
        found = torch.autograd.grad(layer(maps).square().sum(), [maps, layer.weight])
    assert called.call_count == 1
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_odd_maps_lose_their_last_row_and_column_in_training_alone() -> None:
    layer, maps = PooledConv2d(2, 4, 3, padding=1), torch.randn(1, 2, 7, 6)
    assert layer.train()(maps).shape == (1, 4, 6, 6)
    assert layer.eval()(maps).shape == (1, 4, 7, 6)


def test_a_deep_stage_adds_its_last_two_convolutions_to_its_map() -> None:
    torch.manual_seed(0)
    layers = stage(8, 16, pool=True, deep=True).eval()
    maps = torch.randn(2, 8, 8, 8)
    before = layers[:4](maps)
    added = layers.residual.branch(before)
    assert added.abs().max() > 0.1
    torch.testing.assert_close(layers(maps), nn.functional.gelu(before + added))


def test_all_filters_of_a_deep_network_behind_the_first_have_norms_that_undo_their_scale(
    colour: Schema,
) -> None:
    network = wcnn_deep(colour, width=0.1)
    filters = [one for one in network.modules() if isinstance(one, nn.Conv2d)][1:]
    assert len(filters) == 9
    assert roles_of(network) == {id(one.weight): SCALE_FREE for one in filters}
