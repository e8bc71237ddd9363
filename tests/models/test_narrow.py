"""The weight gradient of convolutions on narrow maps, as a product of matrices."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d

from tests.models.passing import passed
from trimtab.models import narrow
from trimtab.models.narrow import Narrow, by_columns, is_dense, narrowest, pays

LAYERS = [
    nn.Conv2d(64, 8, 3, padding=1), nn.Conv2d(64, 8, 3, stride=2, padding=1, bias=False),
    nn.Conv2d(64, 8, (1, 3), padding=(0, 1)), nn.Conv2d(64, 8, 3, padding=2, dilation=2),
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_columns_give_the_gradient_of_the_weight(data: st.DataObject) -> None:
    kernel, stride, dilation, padding = (
        data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))
        for low, high in ((1, 5), (1, 3), (1, 2), (0, 4))
    )
    least = [max(1, dilation[axis] * (kernel[axis] - 1) + 1 - 2 * padding[axis])
             for axis in range(2)]  # fmt: skip
    height, width = (data.draw(st.integers(one, one + 9)) for one in least)
    torch.manual_seed(0)
    features = torch.randn(5, 3, height, width)
    if data.draw(st.booleans()):
        features = features.to(memory_format=torch.channels_last)
    weight = torch.randn(4, 3, *kernel, requires_grad=True)
    outputs = conv2d(features, weight, None, stride, padding, dilation)
    outer = torch.randn_like(outputs)
    (wanted,) = torch.autograd.grad(outputs, weight, outer)
    with mock.patch.object(narrow, "MOST_COLUMNS", data.draw(st.sampled_from([1, 2000, 1 << 23]))):
        got = by_columns(outer, features, kernel, (stride, padding, dilation))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("low", [False, True])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_narrow_layers_differ_from_fp32_no_more_than_the_usual_ones(
    layer: nn.Conv2d, low: bool
) -> None:
    layer = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    features = torch.randn(4, 64, 3, 3).to(memory_format=torch.channels_last)
    exact = passed(layer, features, low=False)
    plain = passed(layer, features, low=low)
    layer.__class__ = Narrow
    with mock.patch.object(narrow, "by_columns", wraps=by_columns) as called:
        quick = passed(layer, features, low=low)
    assert called.call_count == 1
    assert [one.dtype for one in quick] == [one.dtype for one in plain]
    for wanted, usual, got in zip(exact, plain, quick, strict=True):
        error = (got.float() - wanted).norm()
        assert error <= 1.5 * (usual.float() - wanted).norm() + 1e-3 * wanted.norm()


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("size", [(3, 3), (9, 8), (5, 17)])
def test_the_width_asked_about_is_that_of_the_outputs(
    layer: nn.Conv2d, size: tuple[int, int]
) -> None:
    features = torch.randn(1, 64, *size)
    width, place = layer(features).shape[3], (layer.stride, layer.padding, layer.dilation)
    for longest in (width - 1, width):
        with mock.patch.object(narrow, "NARROW", longest):
            assert pays(features, layer.weight, place) == (longest == width)


@pytest.mark.parametrize(("channels", "width"), [(64, narrowest(torch.float32) + 1), (32, 2)])
def test_wide_maps_and_few_channels_go_the_usual_way(channels: int, width: int) -> None:
    layer = nn.Conv2d(channels, 8, 3, padding=1)
    layer.__class__ = Narrow
    with mock.patch.object(narrow, "by_columns", wraps=by_columns) as called:
        passed(layer, torch.randn(2, channels, 4, width), low=False)
    assert not called.called


def test_lines_are_longer_in_bf16_where_the_processor_has_tiles() -> None:
    for tiles, longest in ((True, narrow.NARROW_TILES), (False, narrow.NARROW)):
        with mock.patch.object(narrow, "TILES", tiles):
            assert narrowest(torch.bfloat16) == longest
            assert narrowest(torch.float32) == narrow.NARROW


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(64, 8, 1), nn.Conv2d(64, 64, 3, groups=64),
     nn.Conv2d(64, 8, 3, padding="same"), nn.Conv2d(64, 8, 3, padding=1, padding_mode="reflect")],
    ids=str,
)  # fmt: skip
def test_other_layers_are_left_alone(layer: nn.Conv2d) -> None:
    assert not is_dense(layer)


def test_the_graph_that_torch_compiles_gives_the_same_gradients() -> None:
    layer = copy.deepcopy(LAYERS[1]).to(memory_format=torch.channels_last)
    layer.__class__ = Narrow
    features = torch.randn(4, 64, 5, 5).to(memory_format=torch.channels_last)
    wanted = passed(layer, features, low=True)
    found = passed(torch.compile(layer, backend="aot_eager"), features, low=True)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
