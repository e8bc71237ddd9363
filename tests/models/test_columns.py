"""Convolutions and their gradients by products of matrices are those of torch."""

from __future__ import annotations

from unittest import mock

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import conv2d

from tests.models.drawn import drawn_geometry
from trimtab.models import columns
from trimtab.models.columns import both_gradients, convolved, weight_gradient

CHUNKS = [1, 2000, 1 << 23]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_outputs_and_the_gradient_of_the_weight(data: st.DataObject) -> None:
    kernel, stride, padding, dilation, size = drawn_geometry(data, largest_kernel=5, slack=9)
    features, weight = pair(data, size, kernel)
    bias = torch.randn(4) if data.draw(st.booleans()) else None
    outputs = conv2d(features, weight, bias, stride, padding, dilation)
    outer = torch.randn_like(outputs)
    (wanted,) = torch.autograd.grad(outputs, weight, outer)
    place = (stride, padding, dilation)
    with mock.patch.object(columns, "MOST_COLUMNS", data.draw(st.sampled_from(CHUNKS))):
        got = convolved(features, weight, bias, place)
        by_weight = weight_gradient(outer, features, kernel, place)
    torch.testing.assert_close(got, outputs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(by_weight, wanted, rtol=1e-4, atol=1e-4)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_both_gradients_of_layers_that_keep_the_size(data: st.DataObject) -> None:
    kernel = data.draw(st.tuples(*[st.sampled_from([1, 3, 5])] * 2))
    dilation = data.draw(st.tuples(*[st.integers(1, 2)] * 2))
    padding = tuple(dilation[axis] * (kernel[axis] - 1) // 2 for axis in range(2))
    height, width = data.draw(st.tuples(*[st.integers(1, 9)] * 2))
    features, weight = pair(data, (height, width), kernel)
    features.requires_grad_()
    outputs = conv2d(features, weight, None, 1, padding, dilation)
    outer = torch.randn_like(outputs)
    wanted = torch.autograd.grad(outputs, (features, weight), outer)
    with mock.patch.object(columns, "MOST_COLUMNS", data.draw(st.sampled_from(CHUNKS))):
        got = both_gradients(outer, features, weight, ((1, 1), padding, dilation))
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_weight_lies_in_memory_as_the_weight_does() -> None:
    weight = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    features, outer = torch.randn(2, 4, 5, 5), torch.randn(2, 8, 5, 5)
    place = ((1, 1), (1, 1), (1, 1))
    assert both_gradients(outer, features, weight, place)[1].stride() == weight.stride()
    assert weight_gradient(outer, features, (3, 3), place).stride() == weight.stride()


def pair(
    data: st.DataObject, size: tuple[int, int], kernel: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features of three channels and a weight of four filters, in one order or the other."""
    torch.manual_seed(0)
    features, weight = torch.randn(5, 3, *size), torch.randn(4, 3, *kernel)
    if data.draw(st.booleans()):
        features = features.to(memory_format=torch.channels_last)
        weight = weight.to(memory_format=torch.channels_last)
    return features, weight.requires_grad_()
