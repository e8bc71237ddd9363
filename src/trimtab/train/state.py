"""The state of a training as named tensors and plain facts, and back, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trimtab.errors import UsageError
from trimtab.train.checkpoint import Checkpoint

Facts = dict[str, Any]


def training_state(
    network: nn.Module, optimizer: Optimizer, *, facts: Mapping[str, Any],
    groups: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> tuple[dict[str, Mapping[str, Tensor]], Facts]:  # fmt: skip
    """Return the groups of tensors and the facts that `Checkpoints.save` takes.

    They hold weights and statistics, the optimizer, the random generators, and the caller's own
    `facts` (plain JSON) and `groups` (e.g. `best`, `average`).
    """
    tensors, plain = optimizer_tensors(optimizer)
    weights = network.state_dict(keep_vars=True)
    own = {"weights": weights, "optimizer": tensors, "random": random_tensors()}
    return {**own, **(groups or {})}, {**facts, "optimizer": plain}


def restore_training(found: Checkpoint, network: nn.Module, optimizer: Optimizer) -> list[str]:
    """Put back what `training_state` took; return the random generators that are not here.

    Raises UsageError where the optimizer is another one; RuntimeError where the network is.
    """
    network.load_state_dict(found.tensors("weights"))
    restore_optimizer(optimizer, found.tensors("optimizer"), found.facts["optimizer"])
    return restore_random(found.tensors("random"))


# Optimizers


def optimizer_tensors(optimizer: Optimizer) -> tuple[dict[str, Tensor], Facts]:
    """Return the state of any torch optimizer as flat tensors and plain JSON.

    Parameters are numbered over all groups, as in torch's `state_dict`. The tensors are the
    optimizer's own, of their own types, not copies. Raises UsageError for a state that is neither
    tensor nor plain.
    """
    tensors: dict[str, Tensor] = {}
    state = {}
    for index, parameter in enumerate(parameters_of(optimizer)):
        kept = optimizer.state.get(parameter, {})
        state[str(index)] = {key: flatten(kept[key], f"{index}.{key}", tensors) for key in kept}
    groups = [
        {key: flatten(group[key], f"group{number}.{key}", tensors)
         for key in group if key != "params"} | {"params": len(group["params"])}
        for number, group in enumerate(optimizer.param_groups)
    ]  # fmt: skip
    return tensors, {"kind": type(optimizer).__name__, "state": state, "groups": groups}


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], facts: Facts) -> None:
    """Give `optimizer` the state that `optimizer_tensors` took from one like it.

    Tensors keep their types (torch's own `load_state_dict` casts them to the parameter's); those
    shaped like their parameter get its order in memory. Raises UsageError where the optimizer or
    its groups are others.
    """
    counts = [len(group["params"]) for group in optimizer.param_groups]
    wanted = [group["params"] for group in facts["groups"]]
    if facts["kind"] != type(optimizer).__name__ or counts != wanted:
        raise UsageError(
            f"the checkpoint holds a {facts['kind']} of {wanted} parameters, "
            f"this training has a {type(optimizer).__name__} of {counts}",
            "resume with the recipe and the network of the run",
        )
    for group, kept in zip(optimizer.param_groups, facts["groups"], strict=True):
        for key in kept.keys() - {"params"}:
            group[key] = restored(kept[key], tensors, group.get(key))
    optimizer.state.clear()
    for index, parameter in enumerate(parameters_of(optimizer)):
        if kept := facts["state"][str(index)]:
            optimizer.state[parameter] = {
                key: restored(kept[key], tensors, parameter) for key in kept
            }


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters of all groups, in order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def flatten(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON, its tensors put into `tensors` under names that begin with `name`."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name, "host": value.device.type == "cpu"}
    if type(value) in (list, tuple):
        items = [flatten(one, f"{name}.{place}", tensors) for place, one in enumerate(value)]
        return {type(value).__name__: items}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(float(value))}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UsageError(f"the optimizer's {name} cannot be kept in a checkpoint: {type(value)}",
                     "choose an optimizer whose state is tensors and plain values")  # fmt: skip


def restored(fact: Any, tensors: Mapping[str, Tensor], like: Any) -> Any:
    """Return the value that `flatten` made `fact` of; tensors go where the tensor `like` is."""
    if not isinstance(fact, dict):
        return fact
    if "tensor" in fact:
        return placed(tensors[fact["tensor"]], like, host=fact["host"])
    if "float" in fact:
        return float(fact["float"])
    kind, items = next(iter(fact.items()))
    values = [restored(one, tensors, like) for one in items]
    return tuple(values) if kind == "tuple" else values


def placed(value: Tensor, like: Any, *, host: bool) -> Tensor:
    """Return a copy of `value` on the device of `like`, in the same order in memory if it can."""
    if not isinstance(like, Tensor):
        return value.clone()
    device = "cpu" if host else like.device
    if value.shape != like.shape:
        return value.to(device, copy=True)
    return torch.empty_like(like, dtype=value.dtype, device=device).copy_(value)


# Random generators


def random_tensors() -> dict[str, Tensor]:
    """Return the states of torch's generators: `cpu`, and `cuda0` … where there are any."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        all_states = torch.cuda.get_rng_state_all()
        states |= {f"cuda{index}": state for index, state in enumerate(all_states)}
    return states


def restore_random(tensors: Mapping[str, Tensor]) -> list[str]:
    """Set torch's generators; return the names of those that this machine does not have."""
    torch.set_rng_state(tensors["cpu"])
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = {f"cuda{index}": index for index in range(here)}
    for name in devices.keys() & tensors.keys():
        torch.cuda.set_rng_state(tensors[name], devices[name])
    return sorted(tensors.keys() - devices.keys() - {"cpu"})
