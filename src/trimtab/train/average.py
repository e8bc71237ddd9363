"""Averages of the weights over the steps of a training, by one interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import UsageError
from trimtab.registry import did_you_mean

SWA_START = 0.75
DECAY, SHARE = 0.999, 0.5
Slots = dict[str, tuple[dict[str, Any], str]]


class Average:
    """Keep no average: every call does nothing.

    `update` is called after each step, `applied` around an evaluation; `tensors` and `facts` go
    into a checkpoint, `restore` takes them back.
    """

    def update(self, network: nn.Module, progress: float) -> None:
        """Take the weights of one step; `progress` is the fraction done in [0, 1]."""

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Put the average into `network`, and its own values back at the end, bit for bit."""
        yield

    def tensors(self) -> dict[str, Tensor]:
        """Return the average by the names of the network's state, not copied."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Return what else `restore` needs, as plain values."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from what `tensors` and `facts` returned."""


class Kept(Average):
    """Hold `kept`, a value per parameter and float buffer; integer buffers stay the network's.

    `count` is how many steps have gone in. Before the first one, `applied` changes nothing.
    """

    buffers = True

    def __init__(self, network: nn.Module) -> None:
        self.slots = floats_of(network, buffers=self.buffers)
        self.network = network
        self.kept = [value.detach().clone() for value in self.live(network)]
        self.count = 0

    def live(self, network: nn.Module) -> list[Tensor]:
        """Return the network's present tensors, in the order of `kept`."""
        if network is not self.network:
            self.slots, self.network = floats_of(network, buffers=self.buffers), network
        return [owner[key] for owner, key in self.slots.values()]

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Put the average into `network`, and its own values back at the end, bit for bit."""
        if self.count == 0:
            yield
            return
        raw = [value.detach().clone() for value in self.live(network)]
        self.put(network, self.kept)
        try:
            yield
        finally:
            self.put(network, raw)

    @torch.no_grad()
    def put(self, network: nn.Module, values: list[Tensor]) -> None:
        """Copy `values` into the network."""
        if values:
            torch._foreach_copy_(self.live(network), values)

    def tensors(self) -> dict[str, Tensor]:
        """Return the average by the names of the network's state, not copied."""
        return dict(zip(self.slots, self.kept, strict=True))

    def facts(self) -> dict[str, Any]:
        """Return how many steps have gone in."""
        return {"count": self.count}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Go on from what `tensors` and `facts` returned; raises KeyError for a missing tensor."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])
        self.count = int(facts["count"])


class Ema(Kept):
    """Keep an exponential average: each step, `decay` of it stays.

    Step t, from 0, keeps min(decay, (1 + t) / (10 + t)), so that the random first weights are soon
    forgotten (Polyak & Juditsky 1992; the warm-up is that of TensorFlow's
    ExponentialMovingAverage).
    """

    def __init__(self, network: nn.Module, *, decay: float) -> None:
        super().__init__(network)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, progress: float) -> None:
        """Take the weights of one step."""
        decay = min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self.kept, self.live(network), 1 - decay)
        self.count += 1


class Swa(Kept):
    """Keep the mean of the steps from three quarters of the training on.

    Izmailov et al. 2018, algorithm 1. The statistics of batch norm are averaged as well, in place
    of the extra pass over the data there.
    """

    @torch.no_grad()
    def update(self, network: nn.Module, progress: float) -> None:
        """Take the weights of one step, if it is late enough; begin anew where it is not yet."""
        if progress < SWA_START:
            self.count = 0
        else:
            self.count += 1
            torch._foreach_lerp_(self.kept, self.live(network), 1 / self.count)


class Lookahead(Kept):
    """Pull the fast weights to slow ones: every `every` steps, both become their mixture.

    slow + `share` (fast - slow) (Zhang et al. 2019, algorithm 1; `share` is alpha there, 0.5 or
    0.8). Buffers belong to the fast weights. `applied` shows the slow ones.
    """

    buffers = False

    def __init__(self, network: nn.Module, *, every: int = 5, share: float = 0.5) -> None:
        super().__init__(network)
        self.every = every
        self.share = share

    @torch.no_grad()
    def update(self, network: nn.Module, progress: float) -> None:
        """Count one step, and mix after every `every` of them."""
        self.count += 1
        if self.count % self.every == 0:
            live = self.live(network)
            torch._foreach_lerp_(self.kept, live, self.share)
            torch._foreach_copy_(live, self.kept)


def floats_of(network: nn.Module, *, buffers: bool) -> Slots:
    """Return where the float parameters, and buffers if wanted, stand: name → (owner, key).

    A tensor that two modules share is there once. The owner is asked anew at each use, since a
    module may put another tensor in the place of a buffer.
    """
    found: Slots = {}
    seen: set[int] = set()
    for prefix, module in network.named_modules():
        for owner in (module._parameters, module._buffers) if buffers else (module._parameters,):
            for key, value in owner.items():
                if value is None or not value.is_floating_point() or id(value) in seen:
                    continue
                seen.add(id(value))
                found[f"{prefix}.{key}" if prefix else key] = (owner, key)
    return found


def start_average(
    network: nn.Module, kind: str, *, decay: float | None = None, every: int = 5
) -> Average:
    """Start the average `kind` from the network's present weights.

    `kind` is none, ema (`decay` is what stays per step, 0.999 where it is None), swa or lookahead
    (`decay` is its share, 0.5 where it is None; `every` its steps). Raises UsageError for another.
    """
    if kind == "none":
        return Average()
    if kind == "ema":
        return Ema(network, decay=DECAY if decay is None else decay)
    if kind == "swa":
        return Swa(network)
    if kind == "lookahead":
        return Lookahead(network, every=every, share=SHARE if decay is None else decay)
    known = ("none", "ema", "swa", "lookahead")
    raise UsageError(f"unknown average '{kind}'", did_you_mean(kind, known))
