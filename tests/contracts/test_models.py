"""Every registered model takes its data's shape to one logit per class, and can be trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trimtab.models.build import build, macs_and_params
from trimtab.models.edits import dependency_graph
from trimtab.models.image import MODELS
from trimtab.records.recipe import Recipe
from trimtab.records.schema import Schema

GREY = Schema(classes=("a", "b", "c"), channels=1, height=8, width=8, mean=(78.0,), std=(96.0,))
COLOUR = Schema(classes=tuple("abcdefghij"), channels=3, height=32, width=32,
                mean=(125.0, 123.0, 114.0), std=(63.0, 62.0, 67.0))  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("schema", [GREY, COLOUR], ids=["grey", "colour"])
def test_model_gives_one_finite_logit_per_class(name: str, schema: Schema) -> None:
    network = build(schema, Recipe().override(model__name=name)).eval()
    logits = network(torch.rand(2, *schema.input_shape) * 255)
    assert logits.shape == (2, len(schema.classes))
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", MODELS)
def test_model_sends_a_gradient_to_every_parameter(name: str) -> None:
    network = build(COLOUR, Recipe().override(model__name=name)).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)  # some start at zero and hold gradients back
    outputs = network(torch.rand(4, *COLOUR.input_shape) * 255)
    nn.functional.cross_entropy(outputs, torch.arange(4)).backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("name", MODELS)
def test_model_is_the_same_for_the_same_seed_and_has_dropout(name: str) -> None:
    first, second = [], []
    for weights in (first, second):
        torch.manual_seed(3)
        network = build(GREY, Recipe().override(model__name=name, model__dropout=0.3))
        weights += [p.detach() for p in network.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.manual_seed(3)
    body = MODELS[name](GREY, dropout=0.3)
    rates = {m.p for m in body.modules() if isinstance(m, nn.Dropout)}
    assert 0.3 in rates or getattr(body, "drop_rate", 0) == 0.3


@pytest.mark.parametrize("name", MODELS)
def test_model_can_be_counted_and_traced_for_cuts(name: str) -> None:
    network = build(COLOUR, Recipe().override(model__name=name))
    macs, parameters = macs_and_params(network, COLOUR)
    assert macs > 0
    assert parameters == sum(p.numel() for p in network.parameters())
    assert len(dependency_graph(network, COLOUR).module2node) > 5


@pytest.mark.parametrize("name", MODELS)
def test_model_says_what_it_is(name: str) -> None:
    assert (MODELS[name].__doc__ or "").startswith("Build ")
