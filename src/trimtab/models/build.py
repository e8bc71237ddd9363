"""From a schema and a recipe to a network, and from a run folder back to one."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from trimtab.errors import UsageError
from trimtab.models.edits import replay, require_runs
from trimtab.models.image import find_model
from trimtab.records.files import write_bytes
from trimtab.records.recipe import Recipe
from trimtab.records.run import Run, open_run
from trimtab.records.schema import Schema
from trimtab.records.sections import ModelSection

OWN = "custom:"
COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
WHITE = 255.0
SMALLEST_STD = 1e-3  # of 255: a channel that never changes is only centred
SHOWN = 3
BUILDING = ("width", "dropout", "stochastic_depth")  # choices of a recipe that change the layers
CONTRACT = "a model is a function (schema, *, width=1.0, dropout=0.0) -> nn.Module"


class Normalize(nn.Module):
    """Centre and scale raw pixels per channel, with the statistics of the train split."""

    mean: Tensor
    std: Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        std = [value if value > SMALLEST_STD else 1.0 for value in schema.std]
        self.register_buffer("mean", torch.tensor(schema.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    @torch.no_grad()
    def use(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Take other statistics, one for all channels or one for each, in fractions of white.

        For grey pictures those of colour are averaged.
        """
        for buffer, values in ((self.mean, mean), (self.std, std)):
            given = torch.tensor(values).view(-1, 1, 1) * WHITE
            buffer.copy_(given.mean(0, keepdim=True) if len(buffer) == 1 else given)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map float pixels (N, C, H, W) in [0, 255] to zero mean and unit deviation."""
        if self.training and pixels.is_contiguous(memory_format=torch.channels_last):
            return by_lines(pixels, self.mean, self.std)
        return (pixels - self.mean) / self.std


def by_lines(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise pixels in channels-last order, the same to the bit, as lines of W · C numbers.

    Three channels alone would leave most of a vector register empty.
    """
    width = pixels.shape[3]
    lines = pixels.permute(0, 2, 3, 1).flatten(2)
    values = (lines - mean.flatten().repeat(width)).div_(std.flatten().repeat(width))
    return values.view(*lines.shape[:2], width, -1).permute(0, 3, 1, 2)


class Network(nn.Module):
    """A body with its normalisation in front: float pixels in [0, 255] in, logits (N, K) out.

    `classes` are what its logits stand for.
    """

    def __init__(self, schema: Schema, body: nn.Module) -> None:
        super().__init__()
        self.normalize = Normalize(schema)
        self.body = body
        self.classes = schema.classes

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, C, H, W) to logits (N, K)."""
        return self.body(self.normalize(pixels))  # type: ignore[no-any-return]


def build(schema: Schema, recipe: Recipe, module: nn.Module | None = None) -> Network:
    """Build the recipe's network with fresh weights, or wrap a copy of the user's own `module`.

    The global torch seed decides the fresh weights. `recipe.model.name` must be resolved (not
    "auto"). Raises UsageError for an unknown name and for a network that does not take the data's
    shape to one logit per class.
    """
    body = named_body(schema, recipe) if module is None else copy.deepcopy(module)
    network = Network(schema, body)
    if recipe.model.mean or recipe.model.std:
        network.normalize.use(*stated(recipe, schema))
    for part in network.modules():
        if getattr(part, "inplace", None) is True:
            part.inplace = False  # type: ignore[assignment]  # tracing needs every step's value
    require_runs(network, schema, f"model '{recipe.model.name}'")
    return network


def stated(recipe: Recipe, schema: Schema) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the recipe's own statistics; raises UsageError where they are not for the data."""
    mean, std = recipe.model.mean, recipe.model.std
    if len(mean) != len(std) or len(mean) not in {1, schema.channels}:
        raise UsageError(
            f"model.mean has {len(mean)} numbers and model.std {len(std)}, wanted one each for the "
            f"{schema.channels} channels of the pictures",
            "give both, or leave both out",
        )
    return mean, std


def named_body(schema: Schema, recipe: Recipe) -> nn.Module:
    """Build a registered, timm or imported model, or copy the user's own that was adopted.

    Only settings that differ from their defaults are passed on.
    """
    name = recipe.model.name
    if name.startswith(OWN):
        return copy.deepcopy(adopted(name))
    changed = {key: getattr(recipe.model, key) for key in BUILDING
               if getattr(recipe.model, key) != ModelSection.model_fields[key].default}  # fmt: skip
    try:
        body = find_model(name)(schema, **changed)
    except TypeError as error:
        raise UsageError(f"cannot build model '{name}': {error}", CONTRACT) from error
    if not isinstance(body, nn.Module):
        raise UsageError(f"model '{name}' gave {type(body).__name__}, no nn.Module", CONTRACT)
    return body


def adopt_module(module: nn.Module) -> str:
    """Remember a user's own architecture for this process; return its name for the recipe.

    The name is `custom:<class>-<8 hex>`, from the names and shapes in its state. The weights it
    has now are not kept with the run by this; only `load` in this process needs it.
    """
    if not isinstance(module, nn.Module):
        raise UsageError(f"model= takes a network, an nn.Module, got {module!r}",
                         "name one of trimtab's in the recipe: model.name")  # fmt: skip
    state = "\n".join(f"{key} {tuple(value.shape)}" for key, value in module.state_dict().items())
    digest = hashlib.sha256(state.encode()).hexdigest()[:8]
    name = f"{OWN}{type(module).__name__}-{digest}"
    ADOPTED.setdefault(name, copy.deepcopy(module))
    return name


def adopted(name: str) -> nn.Module:
    """Return the remembered architecture of that name; raises UsageError where there is none."""
    if name not in ADOPTED:
        raise UsageError(
            f"model '{name}' is your own nn.Module and not known in this process",
            "pass model=: tt.load(run, model=my_module), with the module this run was trained from",
        )
    return ADOPTED[name]


def load(run: Run | str | Path, model: nn.Module | None = None) -> Network:
    """Return the network of a run, in eval mode: build, replay its edits, load its weights.

    `model` is the user's own module where the run was trained from one; afterwards the other verbs
    find it too. Raises UsageError where recipe, edits and weights do not belong together.
    """
    run = open_run(run)
    recipe, schema = run.recipe, run.schema
    if recipe.model.name == "auto":
        raise UsageError(f"{run.path} holds no network of its own, being a {run.facts['kind']}",
                         "open one of its candidates/")  # fmt: skip
    if model is not None and (got := adopt_module(model)) != recipe.model.name:
        raise UsageError(f"{run.path} holds model '{recipe.model.name}', got '{got}'",
                         "pass the module the run was trained from")  # fmt: skip
    network = build(schema, recipe)
    replay(network, run.edits, schema)
    load_weights(network, run.weights)
    return network.eval()


def save_weights(network: nn.Module, path: Path) -> None:
    """Write all weights and statistics as safetensors, atomically."""
    state = {key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
             for key, value in network.state_dict().items()}  # fmt: skip
    write_bytes(path, save_tensors(state))


def load_weights(network: nn.Module, path: Path) -> None:
    """Read weights written by `save_weights`; raises UsageError naming what does not fit."""
    try:
        state = load_tensors(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"cannot read weights {path}: {error.strerror}", "was the run finished?"
        ) from error
    except SafetensorError as error:
        raise UsageError(
            f"{path} is no readable safetensors file: {error}", "make the run again"
        ) from error
    wanted = network.state_dict()
    shapes = {k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape}
    faults = [
        *named("missing", wanted.keys() - state.keys()),
        *named("unexpected", state.keys() - wanted.keys()),
        *named("of another shape", shapes),
    ]
    if faults:
        raise UsageError(f"{path} does not fit the network: {'; '.join(faults)}",
                         "recipe.yaml, edits.json and weights must be of one run")  # fmt: skip
    network.load_state_dict(state)


def named(fault: str, keys: Iterable[str]) -> list[str]:
    """Return `2 missing (a, b)`, or nothing."""
    found = sorted(keys)
    more = ", …" if len(found) > SHOWN else ""
    return [f"{len(found)} {fault} ({', '.join(found[:SHOWN])}{more})"] if found else []


def macs_and_params(network: nn.Module, schema: Schema) -> tuple[int, int]:
    """Return multiply-accumulates of one sample and the number of parameters.

    Convolutions and linear layers are counted; attention, norms and activations are not.
    """
    counted: list[int] = []

    def count(module: nn.Module, inputs: Any, outputs: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        counted.append(outputs.numel() * weight[0].numel())

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, COUNTED)]
    training, first = network.training, next(network.parameters())
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *schema.input_shape, device=first.device))
    finally:
        for hook in hooks:
            hook.remove()
        network.train(training)
    return sum(counted), sum(parameter.numel() for parameter in network.parameters())


ADOPTED: dict[str, nn.Module] = {}  # the user's own architectures of this process
