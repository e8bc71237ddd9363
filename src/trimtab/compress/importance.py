"""Importances: from a group of channels that leave together to one score per channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.models.edits import Group

Importance = Callable[[Group], Tensor]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
WEIGHTED = (*CONVOLUTIONS, nn.Linear, *NORMS)


@dataclass(frozen=True)
class Member:
    """One layer of a group: `channels` of its output (or input) leave with the root's `roots`."""

    module: nn.Module
    reads: bool  # whether it reads the channels (its inputs leave) or makes them (its outputs)
    channels: Tensor
    roots: Tensor


def members(group: Group) -> Iterator[Member]:
    """Yield the layers with weights of a dependency group."""
    import torch_pruning

    readers = {torch_pruning.prune_conv_in_channels, torch_pruning.prune_linear_in_channels}
    for item in group.items:
        module = item.dep.target.module
        known = all(root is not None for root in item.root_idxs)
        if isinstance(module, WEIGHTED) and module.weight is not None and known:
            device = module.weight.device
            yield Member(module, item.dep.handler in readers,
                         torch.tensor(item.idxs, device=device),
                         torch.tensor(item.root_idxs, device=device))  # fmt: skip


def magnitude(group: Group) -> Tensor:
    """Return the L2 norm of all weights that leave with each channel, over the group's mean.

    The group norm of Fang et al. 2023 (2301.12900), equation 5, without its sparse training.
    """
    return normalised(gather(group, lambda member: weights_of(member).square().sum(1)).sqrt())


def output_variance(group: Group) -> Tensor:
    """Return the variance of each channel as the layers that read it see it, over the mean.

    After norm and activation, over train samples: a channel that hardly varies says nothing, and
    the next layer's bias can stand in for it. Needs `observed_inputs` around the call.
    """
    return normalised(gather(group, input_variance))


def gather(group: Group, score: Callable[[Member], Tensor | None]) -> Tensor:
    """Add up what `score` gives for the channels of every member, per channel of the root."""
    total = torch.zeros(len(group[0].idxs))
    for member in members(group):
        values = score(member)
        if values is not None:
            chosen = values.detach()[member.channels].float().cpu()
            total.index_add_(0, member.roots.cpu(), chosen)
    return total


def weights_of(member: Member) -> Tensor:
    """Return a layer's weights as (its channels that leave or stay, weights of each)."""
    module, weight = member.module, member.module.weight
    assert isinstance(weight, Tensor)
    if weight.ndim == 1 or not member.reads:
        return weight.flatten(1) if weight.ndim > 1 else weight.unsqueeze(1)
    groups = module.groups if isinstance(module, CONVOLUTIONS) else 1
    split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return split.transpose(1, 2).flatten(0, 1).flatten(1)  # (inputs, outputs * kernel)


def input_variance(member: Member) -> Tensor | None:
    """Return the observed variance of what a reading layer reads, or None for other members."""
    if not member.reads:
        return None
    observed = vars(member.module)["input_variance"]
    assert isinstance(observed, Tensor)
    return observed


def normalised(scores: Tensor) -> Tensor:
    """Return scores with a mean of 1, so that groups of any size can be ranked together."""
    mean = scores.mean()
    return scores / mean if mean > 0 else torch.ones_like(scores)


@contextmanager
def observed_inputs(network: nn.Module, pixels: Tensor) -> Iterator[None]:
    """Give every convolution and linear layer its `input_variance` (channels,) on `pixels`."""
    layers = [m for m in network.modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear))]
    hooks = [layer.register_forward_pre_hook(observe) for layer in layers]
    try:
        with torch.no_grad():
            network.eval()(pixels)
        for hook in hooks:
            hook.remove()  # now: tracing a graph meanwhile would be observed too
        yield
    finally:
        for hook, layer in zip(hooks, layers, strict=True):
            hook.remove()
            vars(layer).pop("input_variance", None)


def observe(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Note the variance of a layer's input per channel, over samples and places."""
    axis = -1 if isinstance(layer, nn.Linear) else 1
    features = inputs[0].float().movedim(axis, 0).flatten(1)
    vars(layer)["input_variance"] = features.var(dim=1, correction=0)


IMPORTANCES: dict[str, Callable[[Any], Tensor]] = {
    "magnitude": magnitude,
    "output_variance": output_variance,
}
