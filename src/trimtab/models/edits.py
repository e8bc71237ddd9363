"""Edits: what was cut out of a network, as plain data, replayed on a fresh one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from trimtab.errors import UsageError
from trimtab.records.schema import Schema
from trimtab.registry import did_you_mean

Edit = dict[str, Any]
Graph = Any  # torch_pruning.DependencyGraph, which has no types
Group = Any  # torch_pruning.dependency.Group: pairs of a dependency and channel indices
ROOTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
HINT = "edits.json belongs to another network or was changed by hand; make the run again"


def replay(network: nn.Module, edits: list[Edit], schema: Schema) -> nn.Module:
    """Apply `edits` to `network` in place, in order, and return it.

    Raises UsageError for an edit that cannot be read, names no layer of this network, or leaves a
    network that no longer takes the data's shape to one logit per class.
    """
    steps = [prepare(edit, index) for index, edit in enumerate(edits)]
    cuts = [step for step in steps if step is not None]
    if not cuts:
        return network
    graph = dependency_graph(network, schema)
    for layer, remove in cuts:
        cut(graph, network, layer, remove)
    require_runs(network, schema)
    return network


def prepare(edit: Edit, index: int) -> tuple[str, list[int]] | None:
    """Check one edit and return the cut it asks for: a layer and its channels, or None."""
    where = f"edit {index}"
    if not isinstance(edit, dict) or not isinstance(edit.get("kind"), str):
        raise UsageError(f"{where} has no kind: got {str(edit)[:80]}", HINT)
    if edit["kind"] not in EDITS:
        hint = did_you_mean(edit["kind"], EDITS)
        raise UsageError(f"{where} is of an unknown kind '{edit['kind']}'", hint)
    return EDITS[edit["kind"]](edit, where)


def prune_edit(edit: Edit, where: str) -> tuple[str, list[int]]:
    """Check `{"kind": "prune", "layer": dotted name, "remove": [channels]}`."""
    if set(edit) != {"kind", "layer", "remove"}:
        raise UsageError(
            f"{where}: a prune edit has kind, layer and remove, got {sorted(edit)}", HINT
        )
    layer, remove = edit["layer"], edit["remove"]
    if not isinstance(layer, str) or not isinstance(remove, list) or not remove:
        raise UsageError(f"{where}: layer must be a name and remove a list of channels", HINT)
    if any(type(channel) is not int or channel < 0 for channel in remove):
        raise UsageError(f"{where}: remove must hold whole numbers from 0 on", HINT)
    if len(set(remove)) != len(remove):
        raise UsageError(f"{where}: remove names a channel twice", HINT)
    return layer, remove


def quantize_edit(edit: Edit, where: str) -> None:
    """Ask for no cut: the quantized graph is a file of its own."""


def dependency_graph(network: nn.Module, schema: Schema) -> Graph:
    """Trace which channels must leave together (Fang et al. 2023, 2301.12900).

    Raises UsageError for a network that cannot be traced.
    """
    import torch_pruning  # here, since only pruned runs need it

    training = network.training
    frozen = [p for p in network.parameters() if not p.requires_grad]
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    pixels = torch.zeros(1, *schema.input_shape, device=device)
    try:
        with torch.enable_grad():
            for parameter in frozen:
                parameter.requires_grad_(True)
            return torch_pruning.DependencyGraph().build_dependency(
                network, example_inputs=(pixels,), verbose=False
            )
    except Exception as error:
        raise UsageError(
            f"cannot trace how the layers of this network depend on each other: {error}",
            "its forward does what tracing cannot follow; quantize it without pruning",
        ) from error
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        network.train(training)


def channel_group(graph: Graph, module: nn.Module, channels: Sequence[int]) -> Group:
    """Return everything that leaves with output `channels` of `module`."""
    pruner = graph.get_pruner_of_module(module)
    return graph.get_pruning_group(module, pruner.prune_out_channels, channels)


def cut(graph: Graph, network: nn.Module, layer: str, remove: list[int]) -> None:
    """Take output channels out of `layer` and everything that depends on them, in place."""
    module = dict(network.named_modules()).get(layer)
    if not isinstance(module, ROOTS) or module not in graph.module2node:
        raise UsageError(f"the network has no layer '{layer}' that can be cut", HINT)
    channels = graph.get_out_channels(module)
    if max(remove) >= channels or len(remove) >= channels:
        raise UsageError(f"layer '{layer}' has {channels} channels, cannot take out {len(remove)} "
                         f"up to number {max(remove)}", HINT)  # fmt: skip
    group = channel_group(graph, module, sorted(remove))
    if not graph.check_pruning_group(group):
        raise UsageError(f"cutting '{layer}' would leave a layer without channels", HINT)
    try:
        with torch.no_grad():
            group.prune(record_history=False)
    except Exception as error:
        raise UsageError(f"cannot cut '{layer}': {error}", HINT) from error


def require_runs(network: nn.Module, schema: Schema, what: str = "the cut network") -> None:
    """Raise UsageError unless `network` maps pixels of the data's shape to one logit per class.

    Three samples, so that a hard-coded flattening cannot shift rows without being seen.
    """
    training = network.training
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    pixels = torch.zeros(3, *schema.input_shape, device=device)
    wanted = (3, len(schema.classes))
    try:
        with torch.no_grad():
            outputs = network.eval()(pixels)
    except Exception as error:
        raise UsageError(
            f"{what} does not take pictures of {shape_text(schema)}: {error}",
            "see data.image_size and data.channels, or choose another network",
        ) from error
    finally:
        network.train(training)
    got = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if got != wanted:
        raise UsageError(f"{what} must return logits (samples, classes) = {wanted}, got {got}",
                         "its last layer needs one output per class")  # fmt: skip


def shape_text(schema: Schema) -> str:
    """Return `32x32x3`."""
    return f"{schema.height}x{schema.width}x{schema.channels}"


EDITS: dict[str, Callable[[Edit, str], tuple[str, list[int]] | None]] = {
    "prune": prune_edit,
    "quantize": quantize_edit,
}
