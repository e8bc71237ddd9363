"""The verb `prune`: whole channels are cut out of a run's network, and the rest is fine-tuned."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.compress.importance import CONVOLUTIONS, IMPORTANCES, Importance, observed_inputs
from trimtab.data.dataset import Dataset, dataset_of
from trimtab.data.feed import Feed
from trimtab.errors import CompressError, UsageError
from trimtab.machine.device import best_device
from trimtab.models.build import Network, load, macs_and_params
from trimtab.models.edits import ROOTS, Edit, Graph, Group, dependency_graph, replay
from trimtab.records.files import locked, write_json
from trimtab.records.recipe import Recipe
from trimtab.records.run import Run, open_run, start_run, update_facts, whole_or_gone
from trimtab.records.schema import Schema
from trimtab.records.sections import AugmentSection
from trimtab.records.target import parse_duration
from trimtab.registry import lookup
from trimtab.train.finish import finish
from trimtab.train.initial import freeze_whitened
from trimtab.train.loop import train_network
from trimtab.train.settings import peak_learning_rate

BLOCK = 8  # channels stay a multiple of this, one vector register of floats
FLOOR = 0.25  # no layer loses more than three quarters of its channels
FINETUNE_RATE = 0.3  # of the parent's peak learning rate
BATCHES, BATCH = 16, 128  # of train pixels that set the batch norms
QUANTIZE = "quantize it without pruning, or choose another network"


@dataclass(frozen=True)
class Layer:
    """A layer whose output channels can be cut: their scores, and in how many groups they come."""

    name: str
    scores: Tensor
    groups: int = 1

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return len(self.scores)

    @property
    def step(self) -> int:
        """Channels that are cut together: a multiple of 8 and of the convolution groups."""
        return math.lcm(BLOCK, self.groups)

    @property
    def floor(self) -> int:
        """Fewest channels that stay."""
        least = max(BLOCK, math.ceil(FLOOR * self.channels))
        return min(self.channels, self.step * math.ceil(least / self.step))

    def ranked(self) -> list[int]:
        """Return the channels, best first; in grouped convolutions the same ones of each group."""
        size = self.channels // self.groups
        best = self.scores.view(self.groups, size).mean(0).argsort(descending=True, stable=True)
        return [group * size + int(place) for place in best for group in range(self.groups)]


def prune(
    run: Run | str | Path, *, keep: float | None = None,
    importance: str | Importance | None = None, data: Any = None,
    budget: str | float | None = None, out: str | Path | None = None, seed: int | None = None,
) -> Run:  # fmt: skip
    """Cut the least important channels out of a run's network, fine-tune it, return the new run.

    `keep` is the share of channels kept over all layers that can be cut, in (0, 1]; None takes the
    first of the recipe's `compress.prune_keep`. Layers keep a quarter of their channels and 8 at
    the least, in multiples of 8; the classes are never cut. `importance` None takes the recipe's.
    `budget` bounds the whole call. Raises UsageError for a share out of range and for a quantized
    run, CompressError where nothing can be cut; then no folder is left. After Ctrl-C the run holds
    what was reached and its status is "interrupted".
    """
    started, parent = time.monotonic(), open_run(run)
    keep = share(keep, parent.recipe)
    part = importance or parent.recipe.compress.importance
    score = lookup("importance", IMPORTANCES, part)
    seconds = parse_duration(budget) if budget is not None else None
    require_float(parent)
    dataset = dataset_of(parent, data)
    network = load(parent).to(best_device())
    seed = parent.facts["seed"] if seed is None else seed
    before = macs_and_params(network, dataset.schema)
    edits = cut_channels(network, dataset, score, keep, seed)
    child = start_run(out, kind="prune", label=f"{parent.facts['label']}-keep{round(100 * keep)}",
                      recipe=parent.recipe, seed=seed, parent=parent,
                      edits=[*parent.edits, *edits])  # fmt: skip
    named = part if isinstance(part, str) else getattr(part, "__name__", type(part).__name__)
    update_facts(child, keep=keep, importance=named)
    child.record("macs_before", before[0])
    child.record("params_before", before[1])
    left = None if seconds is None else max(1.0, seconds - (time.monotonic() - started))
    with locked(child.path), whole_or_gone(child.path):
        finetune(child, network, dataset, budget_seconds=left)
    return child


def require_float(parent: Run) -> None:
    """Raise UsageError for a run whose ranges a cut would make wrong."""
    if any(isinstance(edit, dict) and edit.get("kind") == "quantize" for edit in parent.edits):
        raise UsageError(f"{parent.path} is quantized already", "prune its parent, then quantize")


def share(keep: float | None, recipe: Recipe) -> float:
    """Return the share of channels to keep; raises UsageError outside (0, 1]."""
    if keep is None:
        keep = next(iter(recipe.compress.prune_keep), 0.5)
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise UsageError(f"keep is the share of channels kept, in (0, 1], got {keep!r}",
                         "0.7 keeps 70 %")  # fmt: skip
    return float(keep)


def finetune(
    child: Run, network: Network, dataset: Dataset, *, budget_seconds: float | None
) -> None:
    """Train the cut network shortly, and fill its run."""
    write_json(child.path / "data.json", dataset.describe(child.path))
    assert child.parent is not None
    if child.recipe.model.whiten:
        freeze_whitened(network)
    result = train_network(network, dataset, finetuning(child.parent), child,
                           seed=child.facts["seed"], budget_seconds=budget_seconds)  # fmt: skip
    finish(child, network, result, dataset)


def finetuning(parent: Run) -> Recipe:
    """Return the recipe of the fine-tuning: a share of the epochs, a lower peak learning rate.

    The epochs are those of the run that was trained, however often it has been pruned since.
    """
    recipe, trained = parent.recipe, parent
    while trained.facts["kind"] == "prune" and trained.parent is not None:
        trained = trained.parent
    epochs = float(trained.facts.get("epochs", recipe.train.epochs))
    return recipe.override(
        train__epochs=max(1, round(recipe.compress.finetune_fraction * epochs)),
        train__learning_rate=FINETUNE_RATE * peak_learning_rate(recipe),
        train__head_only=0.0,
    )


def cut_channels(
    network: nn.Module, dataset: Dataset, score: Importance, keep: float, seed: int
) -> list[Edit]:
    """Cut `network` in place, set its batch norms anew, and return the edits.

    Raises CompressError where nothing can be cut.
    """
    schema, before = dataset.schema, count_parameters(network)
    batches = list(train_pixels(network, dataset, seed))
    try:
        layers = score_layers(network, schema, batches[0], score)
        edits = plan_edits(network, schema, layers, keep)
        replay(network, edits, schema)
    except UsageError as error:
        raise CompressError(f"this network cannot be cut: {error.message}", QUANTIZE) from error
    after = count_parameters(network)
    if after >= before:
        raise CompressError(f"nothing was cut at keep={keep:g}: all {before:,} parameters stay",
                            "lower keep, or choose a wider network")  # fmt: skip
    recalibrate(network, batches)
    return edits


def count_parameters(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def train_pixels(network: nn.Module, dataset: Dataset, seed: int) -> Iterator[Tensor]:
    """Yield some shuffled batches of unchanged train pixels, on the network's device."""
    unchanged = AugmentSection(shift=0.0, flip=False)
    device = next(network.parameters()).device
    feed = Feed(dataset.splits["train"], unchanged, batch_size=BATCH, seed=seed,
                classes=len(dataset.schema.classes), device=device)  # fmt: skip
    for batch in islice(feed.epoch(0), BATCHES):
        yield batch.inputs


def score_layers(
    network: nn.Module, schema: Schema, pixels: Tensor, score: Importance
) -> list[Layer]:
    """Return every layer that can be cut with the scores of its channels."""
    names = {module: name for name, module in network.named_modules()}
    graph, layers = dependency_graph(network, schema), []
    with observed_inputs(network, pixels):
        for group in graph.get_all_groups(root_module_types=ROOTS):
            if reaches_outputs(graph, group):
                continue
            root = group[0].dep.target.module
            scores = checked_scores(score(group), names[root], len(group[0].idxs))
            layers.append(Layer(names[root], scores, convolution_groups(group)))
    return layers


def reaches_outputs(graph: Graph, group: Group) -> bool:
    """Return whether the group holds outputs of the network, which are its classes."""
    return any(not item.dep.target.outputs and graph.is_out_channel_pruning_fn(item.dep.handler)
               for item in group.items)  # fmt: skip


def convolution_groups(group: Group) -> int:
    """Return into how many equal parts the channels of a group fall; depthwise ones count as 1."""
    modules = [item.dep.target.module for item in group.items]
    grouped = [m.groups for m in modules if isinstance(m, CONVOLUTIONS) and m.groups > 1
               and not m.groups == m.in_channels == m.out_channels]  # fmt: skip
    return math.lcm(1, *grouped, *(m.num_groups for m in modules if isinstance(m, nn.GroupNorm)))


def checked_scores(scores: Any, name: str, channels: int) -> Tensor:
    """Return an importance's answer; raises UsageError where it is not one number per channel."""
    got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if not isinstance(scores, Tensor) or got != (channels,) or not torch.isfinite(scores).all():
        raise UsageError(f"the importance of '{name}' must be {channels} finite numbers, got {got}",
                         "an importance returns a Tensor (channels,)")  # fmt: skip
    return scores.detach().float().cpu()


def plan_edits(network: nn.Module, schema: Schema, layers: list[Layer], keep: float) -> list[Edit]:
    """Return the cuts; layers whose cut breaks the network (hard-coded shapes) are left whole."""
    edits = as_edits(layers, keep)
    if not edits or works(network, edits, schema):
        return edits
    sound = [layer for layer in layers
             if works(network, as_edits([layer], FLOOR), schema)]  # fmt: skip
    return as_edits(sound, keep)


def works(network: nn.Module, edits: list[Edit], schema: Schema) -> bool:
    """Return whether a copy of the network still runs with these cuts."""
    try:
        replay(copy.deepcopy(network), edits, schema)
    except UsageError:
        return False
    return True


def as_edits(layers: list[Layer], keep: float) -> list[Edit]:
    """Return what to cut as edits; layers that stay whole have none."""
    kept = allot(layers, keep)
    return [{"kind": "prune", "layer": layer.name, "remove": sorted(layer.ranked()[size:])}
            for layer, size in zip(layers, kept, strict=True) if size < layer.channels]  # fmt: skip


def allot(layers: list[Layer], keep: float) -> list[int]:
    """Return how many channels each layer keeps.

    Every layer gets its floor; what is left of `keep` goes block by block to the blocks of the
    highest mean score among all layers, and ends nearest to the wanted number.
    """
    kept = [layer.floor for layer in layers]
    left = keep * sum(layer.channels for layer in layers) - sum(kept)
    blocks = [block for index, layer in enumerate(layers) for block in blocks_of(layer, index)]
    for _, index, size in sorted(blocks, key=lambda block: -block[0]):
        if left < size / 2:
            break
        kept[index] += size
        left -= size
    return kept


def blocks_of(layer: Layer, index: int) -> Iterator[tuple[float, int, int]]:
    """Yield (mean score, index, channels) of the blocks above a layer's floor, best first."""
    scores = layer.scores[layer.ranked()]
    for start in range(layer.floor, layer.channels, layer.step):
        block = scores[start : start + layer.step]
        yield float(block.mean()), index, len(block)


@torch.no_grad()
def recalibrate(network: nn.Module, batches: list[Tensor]) -> None:
    """Measure the statistics of all batch norms anew, as plain averages over the batches."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    network.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for pixels in batches:
        network(pixels)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()
