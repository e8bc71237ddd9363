"""Every importance gives one finite score per channel, larger for what should be kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab.compress.importance import IMPORTANCES, members, observed_inputs
from trimtab.models.build import Network, build
from trimtab.models.edits import channel_group, dependency_graph
from trimtab.records.recipe import Recipe
from trimtab.records.schema import Schema

COLOUR = Schema(classes=("a", "b", "c"), channels=3, height=16, width=16,
                mean=(125.0, 123.0, 114.0), std=(63.0, 62.0, 67.0))  # fmt: skip
LAYERS = {
    "cnn_small": "body.stage1.conv",
    "resnet8": "body.stem.conv",
    "dwconv_small": "body.block1.1.conv",
    "mobilenetv3_small_100": "body.blocks.2.0.conv_pw",
}


@pytest.fixture(params=LAYERS)
def case(request: Any) -> tuple[Network, nn.Conv2d]:
    """A network and a layer of it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = build(COLOUR, Recipe().override(model__name=request.param))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.rand(16, 3, 16, 16) * 255)  # so that a signal comes through
    layer = network.get_submodule(LAYERS[request.param])
    assert isinstance(layer, nn.Conv2d)
    return network, layer


def whole_group(network: Network, layer: nn.Module) -> Any:
    graph = dependency_graph(network, COLOUR)
    return channel_group(graph, layer, range(graph.get_out_channels(layer)))


def scores_of(case: tuple[Network, nn.Conv2d], name: str) -> Tensor:
    network, layer = case
    with observed_inputs(network, torch.rand(8, 3, 16, 16) * 255):
        return IMPORTANCES[name](whole_group(network, layer))


@pytest.mark.parametrize("name", IMPORTANCES)
def test_importance_scores_every_channel_of_a_group(
    name: str, case: tuple[Network, nn.Conv2d]
) -> None:
    scores = scores_of(case, name)
    assert scores.shape == (case[1].out_channels,)
    assert torch.isfinite(scores).all()
    assert (scores >= 0).all()
    assert scores.std() > 0
    assert scores.mean() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("name", IMPORTANCES)
def test_importance_ranks_a_dead_channel_last(name: str, case: tuple[Network, nn.Conv2d]) -> None:
    network, layer = case
    with torch.no_grad():
        for member in members(whole_group(network, layer)):
            for parameter in member.module.parameters():
                if parameter.ndim > 1 and member.reads:
                    parameter[:, 5] = 0
                elif not member.reads:
                    parameter[5] = 0
    scores = scores_of(case, name)
    assert scores[5] == scores.min() == 0
    assert scores.max() > 0


@pytest.mark.parametrize("name", IMPORTANCES)
def test_importance_changes_nothing(name: str, case: tuple[Network, nn.Conv2d]) -> None:
    network, _ = case
    before = {key: value.clone() for key, value in network.state_dict().items()}
    scores_of(case, name)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any("input_variance" in vars(module) for module in network.modules())
