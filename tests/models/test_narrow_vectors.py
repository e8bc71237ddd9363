"""What holds with AVX-512 holds for processors without it: the same C++, other instructions."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tests.models import test_excite as excite
from tests.models import test_fused as fused
from tests.models import test_layer_norm as layer_norm
from tests.models import test_pooled as pooled
from trimtab.machine import native
from trimtab.models.kernels import why_not

SIZES = [(3, 17, 5, 4), (2, 40, 9, 9)]
pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="for x86 processors")


@pytest.fixture(scope="module", autouse=True)
def without_avx512() -> Iterator[None]:
    """Load the library as it is compiled for processors of 2013."""
    patch = pytest.MonkeyPatch()
    patch.setattr(native, "for_processor", lambda: ("-march=x86-64-v3",))
    native.load.cache_clear()
    assert why_not() == ""
    yield
    patch.undo()
    native.load.cache_clear()


@pytest.mark.parametrize("made", fused.MADE.values(), ids=fused.MADE)
def test_norms_and_activations_are_those_of_torch(made: fused.Made) -> None:
    for size in SIZES:
        fused.test_outputs_gradients_and_running_moments_are_those_of_double_precision(made, size)
    fused.test_in_bf16_they_are_as_near_as_those_of_torch(made)


def test_activations_are_those_of_torch_everywhere() -> None:
    fused.test_activations_are_those_of_torch_from_the_smallest_to_the_largest()
    for kind in fused.ACTIVATIONS:
        for low in (False, True):
            fused.test_what_is_not_finite_stays_so(kind, low)


@pytest.mark.parametrize("size", [(7, 40), (3, 5, 17), (9, 3)], ids=str)
def test_layer_norms_are_those_of_torch(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    features = torch.randn(size) + 50 * torch.randn(*size[:-1], 1)
    layer_norm.compared(nn.LayerNorm(size[-1]), features, layer_norm.RowNorm)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pooling_and_gates_are_those_of_torch(size: tuple[int, ...]) -> None:
    for low in (False, True):
        pooled.test_outputs_and_gradients_are_those_of_torch(size, False, low)
    for made in excite.BLOCKS:
        excite.test_outputs_and_gradients_are_those_of_double_precision(made, size)
