"""Edits replay on a fresh network, output for output, and a file that was changed is refused."""

from __future__ import annotations

import contextlib
import copy
import json
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trimtab.errors import UsageError
from trimtab.models.build import Network, build
from trimtab.models.edits import ROOTS, cut, dependency_graph, replay
from trimtab.records.recipe import Recipe
from trimtab.records.schema import Schema

PICTURES = Schema(classes=("a", "b", "c"), channels=3, height=16, width=16,
                  mean=(125.0, 123.0, 114.0), std=(63.0, 62.0, 67.0))  # fmt: skip
NETS = ("cnn_small", "resnet8", "dwconv_small", "mobilenetv3_small_100")


@cache
def original(name: str) -> Network:
    """A network whose weights and statistics are all different."""
    torch.manual_seed(0)
    network = build(PICTURES, Recipe().override(model__name=name))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)
                module.momentum = 1.0
        network.train()(torch.rand(16, 3, 16, 16) * 255)
        logits = network.eval()(pixels())
    assert (logits[0] - logits[1]).abs().max() > 1e-3 * logits.abs().max(), "a signal comes through"
    return network


@cache
def pixels() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255


def layers(network: nn.Module) -> dict[str, int]:
    """Names and output channels of what may be cut: all but the classifier."""
    sizes = {n: m.weight.shape[0] for n, m in network.named_modules() if isinstance(m, ROOTS)}
    return {name: size for name, size in sizes.items() if not name.endswith("classifier")}


@st.composite
def cuts(draw: st.DrawFn, name: str) -> list[dict[str, Any]]:
    """Up to three cuts of random channels; each layer's first channels stay."""
    sizes = layers(original(name))
    chosen = draw(st.lists(st.sampled_from(sorted(sizes)), min_size=1, max_size=3, unique=True))
    edits = []
    for layer in chosen:
        channels = st.integers(2, sizes[layer] // 2)
        remove = draw(st.lists(channels, min_size=1, max_size=sizes[layer] // 4, unique=True))
        edits.append({"kind": "prune", "layer": layer, "remove": remove})
    return edits


@pytest.mark.parametrize("name", NETS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_replaying_edits_gives_the_cut_network_output_for_output(
    name: str, data: st.DataObject
) -> None:
    edits = data.draw(cuts(name))
    cut_one = copy.deepcopy(original(name))
    graph = dependency_graph(cut_one, PICTURES)
    for edit in edits:
        cut(graph, cut_one, edit["layer"], edit["remove"])
    written = json.loads(json.dumps(edits))
    fresh = replay(build(PICTURES, Recipe().override(model__name=name)), written, PICTURES)
    fresh.load_state_dict(cut_one.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(pixels()), cut_one(pixels()))
    before = sum(p.numel() for p in original(name).parameters())
    assert sum(p.numel() for p in fresh.parameters()) < before


@pytest.mark.parametrize(
    ("name", "layer", "norms"),
    [
        ("cnn_small", "body.stage1.conv", ["body.stage1.norm"]),
        ("resnet8", "body.stem.conv", ["body.stem.norm", "body.stage1.0.branch.1.norm"]),
        ("dwconv_small", "body.stem.conv", ["body.stem.norm", "body.block1.0.norm"]),
    ],
)
def test_cutting_channels_that_are_always_zero_changes_no_output(
    name: str, layer: str, norms: list[str]
) -> None:
    network, remove = copy.deepcopy(original(name)), [1, 3, 6]
    with torch.no_grad():
        for norm in norms:
            network.get_submodule(norm).weight[remove] = 0
            network.get_submodule(norm).bias[remove] = 0
        expected = network(pixels())
        replay(network, [{"kind": "prune", "layer": layer, "remove": remove}], PICTURES)
        torch.testing.assert_close(network(pixels()), expected)
        unlike = copy.deepcopy(original(name))
        replay(unlike, [{"kind": "prune", "layer": layer, "remove": remove}], PICTURES)
        assert not torch.allclose(unlike(pixels()), original(name)(pixels()))


def test_same_layer_can_be_cut_twice() -> None:
    edit = {"kind": "prune", "layer": "body.stage1.conv", "remove": [30, 31]}
    with pytest.raises(UsageError, match="has 30 channels"):
        replay(copy.deepcopy(original("cnn_small")), [edit, edit], PICTURES)
    second = {**edit, "remove": [28, 29]}
    network = replay(copy.deepcopy(original("cnn_small")), [edit, second], PICTURES)
    assert network.get_submodule("body.stage1.conv").out_channels == 28


def test_no_edits_and_quantize_edits_leave_the_float_network_as_it_is() -> None:
    network = copy.deepcopy(original("cnn_small"))
    quantized = {"kind": "quantize", "scheme": "int8", "ranges": {"x": [0, 1]}, "graph": "g.onnx"}
    replay(replay(network, [], PICTURES), [quantized], PICTURES)
    for key, value in original("cnn_small").state_dict().items():
        assert torch.equal(network.state_dict()[key], value)


def test_training_mode_and_frozen_parameters_survive_tracing() -> None:
    network = copy.deepcopy(original("cnn_small")).train()
    network.body.stem.conv.weight.requires_grad_(False)
    dependency_graph(network, PICTURES)
    assert network.training
    assert not network.body.stem.conv.weight.requires_grad


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({}, "has no kind"),
        ("prune", "has no kind"),
        ({"kind": 3}, "has no kind"),
        ({"kind": "prun"}, "unknown kind 'prun'"),
        ({"kind": "os:getcwd"}, "unknown kind 'os:getcwd'"),
        ({"kind": "prune"}, "has kind, layer and remove"),
        ({"kind": "prune", "layer": "body.stem.conv", "remove": [0], "x": 1}, "has kind, layer"),
        ({"kind": "prune", "layer": 3, "remove": [0]}, "layer must be a name"),
        ({"kind": "prune", "layer": "body.stem.conv", "remove": []}, "remove a list"),
        ({"kind": "prune", "layer": "body.stem.conv", "remove": "01"}, "remove a list"),
        ({"kind": "prune", "layer": "body.stem.conv", "remove": [0.5]}, "whole numbers"),
        ({"kind": "prune", "layer": "body.stem.conv", "remove": [True]}, "whole numbers"),
        ({"kind": "prune", "layer": "body.stem.conv", "remove": [-1]}, "whole numbers"),
        ({"kind": "prune", "layer": "body.stem.conv", "remove": [1, 1]}, "twice"),
        ({"kind": "prune", "layer": "body.stem.conv", "remove": [16]}, "has 16 channels"),
        ({"kind": "prune", "layer": "body.stem.conv", "remove": list(range(16))}, "take out 16"),
        ({"kind": "prune", "layer": "body.nothing", "remove": [0]}, "no layer 'body.nothing'"),
        ({"kind": "prune", "layer": "body.stem.norm", "remove": [0]}, "no layer 'body.stem.norm'"),
        ({"kind": "prune", "layer": "", "remove": [0]}, "no layer ''"),
        ({"kind": "prune", "layer": "body.classifier", "remove": [0]}, "must return logits"),
    ],
)  # fmt: skip
def test_edit_that_was_changed_by_hand_is_refused(edit: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replay(copy.deepcopy(original("cnn_small")), [edit], PICTURES)


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-3, 20)
        | st.sampled_from(["prune", "body.stem.conv"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["kind", "layer", "remove", "x"]), inner, max_size=4)
        ),
        max_leaves=8,
    )
)
def test_no_edit_from_a_file_crashes(edit: Any) -> None:
    network = copy.deepcopy(original("cnn_small"))
    with contextlib.suppress(UsageError):
        replay(network, [edit], PICTURES)


class Untraceable(nn.Module):
    """It takes no single picture, and tracing gives it one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 1:
            raise ValueError("one is not enough")
        return self.conv(x).mean((2, 3))  # type: ignore[no-any-return]


def test_network_that_cannot_be_traced_is_refused_with_a_reason() -> None:
    edit = {"kind": "prune", "layer": "conv", "remove": [0]}
    with pytest.raises(UsageError, match=r"cannot trace .* one is not enough"):
        replay(Untraceable(), [edit], PICTURES)
