"""Depthwise convolutions in bf16 give the gradients they should, by a quicker road."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d

from tests.models.drawn import drawn_geometry
from tests.models.passing import passed
from trimtab.models import depthwise
from trimtab.models.correlate import of_lines, of_pictures
from trimtab.models.depthwise import Depthwise, inner_counted, is_depthwise, weight_counted
from trimtab.models.quick import quick_layers

LAYERS = [
    nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
    nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
    nn.Conv2d(8, 16, 5, stride=(2, 1), padding=2, groups=8),
    nn.Conv2d(8, 8, 7, padding=6, dilation=2, groups=8),
    nn.Conv2d(8, 8, (5, 7), padding=(1, 3), groups=8),
    nn.Conv2d(8, 8, 5, stride=(2, 1), padding=2, groups=8, bias=False),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("size", [(6, 7), (9, 11), (20, 17), (9, 40)])
def test_gradients_are_those_of_fp32_as_near_as_bf16_can_be(
    layer: nn.Conv2d, size: tuple[int, int]
) -> None:
    layer = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    features = torch.randn(4, 8, *size).contiguous(memory_format=torch.channels_last)
    exact = passed(layer, features, low=False)
    plain = passed(layer, features, low=True)
    with quick_layers(layer):
        assert isinstance(layer, Depthwise)
        quick = passed(layer, features, low=True)
    assert type(layer) is nn.Conv2d
    assert [one.dtype for one in quick] == [one.dtype for one in plain]
    for wanted, usual, got in zip(exact, plain, quick, strict=True):
        error = (got.float() - wanted).norm()
        assert error <= 1.5 * (usual.float() - wanted).norm() + 1e-3 * wanted.norm()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_products_of_matrices_give_the_gradient_of_the_weight(data: st.DataObject) -> None:
    kernel, stride, padding, dilation, size = drawn_geometry(data, largest_kernel=7, slack=12)
    torch.manual_seed(0)
    features = torch.randn(2, 3, *size)
    weight = torch.randn(3, 1, *kernel, requires_grad=True)
    outputs = conv2d(features, weight, None, stride, padding, dilation, 3)
    outer = torch.randn_like(outputs)
    (wanted,) = torch.autograd.grad(outputs, weight, outer)
    place = (stride, padding, dilation)
    got = [of_pictures(outer, features, kernel, place)]
    if stride == dilation == (1, 1):
        got.append(of_lines(outer, features, kernel, padding))
    for one in got:
        torch.testing.assert_close(one.view_as(weight), wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_own_cpp_gives_both_gradients(data: st.DataObject) -> None:
    kernel, stride, padding, dilation, size = drawn_geometry(data, largest_kernel=8, slack=12)
    channels = data.draw(st.sampled_from([1, 3, 16, 17, 40]))
    torch.manual_seed(0)
    features = torch.randn(2, channels, *size).contiguous(memory_format=torch.channels_last)
    features.requires_grad_()
    weight = torch.randn(channels, 1, *kernel, requires_grad=True)
    outputs = conv2d(features, weight, None, stride, padding, dilation, channels)
    outer = torch.randn_like(outputs)
    wanted = torch.autograd.grad(outputs, (features, weight), outer)
    place = (stride, padding, dilation)
    with torch.no_grad():
        got = (inner_counted(place, outer, features, weight),
               weight_counted(place, outer, features, weight))  # fmt: skip
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_gradients_are_near_those_of_fp32_without_the_own_cpp_too(
    layer: nn.Conv2d, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depthwise, "is_here", lambda: False)
    test_gradients_are_those_of_fp32_as_near_as_bf16_can_be(layer, (9, 11))


def test_without_autocast_nothing_changes() -> None:
    layer, features = copy.deepcopy(LAYERS[1]), torch.randn(2, 8, 9, 9)
    wanted = passed(layer, features, low=False)
    with quick_layers(layer):
        got = passed(layer, features, low=False)
    assert all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True))


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(1, 8, 3),
     nn.Conv2d(8, 8, 3, groups=8, padding="same"),
     nn.Conv2d(8, 8, 3, groups=8, padding=1, padding_mode="reflect")],
    ids=str,
)  # fmt: skip
def test_other_layers_are_left_alone(layer: nn.Conv2d) -> None:
    assert not is_depthwise(layer)


@pytest.mark.filterwarnings("error:.*lru_cache.*")
def test_the_graph_that_torch_compiles_gives_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(depthwise, "is_here", lambda: False)  # what a graph does without
    layers = [copy.deepcopy(LAYERS[5]), copy.deepcopy(LAYERS[4])]
    network = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    with quick_layers(network):
        graph = torch.compile(network, backend="aot_eager")
        for size in ((6, 7), (20, 17)):  # whole pictures, lines
            features = torch.randn(4, 8, *size).contiguous(memory_format=torch.channels_last)
            network.zero_grad()
            wanted = passed(network, features, low=True)
            network.zero_grad()
            outputs, *others = passed(graph, features, low=True)
            for one, other in zip([outputs, *others], wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
