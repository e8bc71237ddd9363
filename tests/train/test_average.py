"""Averages of weights are what their formula says, are put in for a while, and can be resumed."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab.errors import UsageError
from trimtab.train.average import Average, Ema, Lookahead, Swa, floats_of, start_average

KINDS = ["none", "ema", "swa", "lookahead"]
STEPS = 12


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))


def walk(module: nn.Module, seed: int) -> None:
    """Move weights and statistics as a step of a training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    module[1](torch.randn(4, 3, 2, 2, generator=generator))


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def shown(average: Average, module: nn.Module) -> dict[str, Tensor]:
    with average.applied(module):
        return state_of(module)


def started(kind: str, module: nn.Module) -> Average:
    return start_average(module, kind, decay=0.6, every=3)


def run(average: Average, module: nn.Module, first: int = 0, last: int = STEPS) -> list[Any]:
    history = []
    for step in range(first, last):
        walk(module, step)
        history.append(state_of(module))
        average.update(module, (step + 1) / STEPS)
    return history


# What holds for every kind


@pytest.mark.parametrize("kind", KINDS)
def test_applied_leaves_the_network_as_it_was_bit_for_bit(kind: str) -> None:
    module = network()
    average = started(kind, module)
    run(average, module)
    before = state_of(module)
    with average.applied(module):
        changed = not same(before, state_of(module))
    assert same(before, state_of(module))
    with pytest.raises(RuntimeError, match="half way"), average.applied(module):
        raise RuntimeError("half way")
    assert same(before, state_of(module))
    assert changed == (kind in {"ema", "swa"})  # lookahead has just pulled the fast weights


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [1, 4, 10])
def test_resumed_average_goes_on_bit_for_bit(kind: str, cut: int) -> None:
    whole = network()
    average = started(kind, whole)
    run(average, whole)
    first = network()
    kept = started(kind, first)
    run(kept, first, 0, cut)
    tensors = {key: value.clone() for key, value in kept.tensors().items()}
    facts = json.loads(json.dumps(kept.facts()))
    second = network()
    second.load_state_dict(first.state_dict())
    resumed = started(kind, second)
    resumed.restore(tensors, facts)
    run(resumed, second, cut)
    assert same(state_of(second), state_of(whole))
    assert same(shown(resumed, second), shown(average, whole))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_restore_needs_every_tensor(kind: str) -> None:
    module = network()
    average = started(kind, module)
    tensors = dict(average.tensors())
    tensors.pop("0.weight")
    with pytest.raises(KeyError, match=r"0\.weight"):
        average.restore(tensors, average.facts())


@pytest.mark.parametrize("kind", KINDS)
def test_before_the_first_step_the_network_shows_itself(kind: str) -> None:
    module = network()
    average = started(kind, module)
    walk(module, 0)
    assert same(shown(average, module), state_of(module))


@pytest.mark.parametrize("kind", KINDS)
def test_integer_buffers_are_the_networks_own(kind: str) -> None:
    module = network()
    average = started(kind, module)
    run(average, module)
    assert shown(average, module)["1.num_batches_tracked"] == STEPS


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_allocates_no_new_tensors(kind: str) -> None:
    module = network()
    average = started(kind, module)
    before = [value.data_ptr() for value in average.tensors().values()]
    run(average, module)
    assert [value.data_ptr() for value in average.tensors().values()] == before


# Each kind


def test_none_holds_nothing() -> None:
    module = network()
    average = start_average(module, "none")
    assert type(average) is Average
    assert not average.tensors()
    assert not average.facts()


def test_ema_agrees_with_its_formula_and_forgets_the_first_weights_early() -> None:
    module = network()
    wanted = {key: value.double() for key, value in module.state_dict().items()}
    average = Ema(module, decay=0.9)
    for step, state in enumerate(run(average, module)):
        decay = min(0.9, (1 + step) / (10 + step))
        for key in wanted:
            wanted[key] = decay * wanted[key] + (1 - decay) * state[key].double()
    found = shown(average, module)
    for key in ("0.weight", "3.bias", "1.running_var"):
        assert torch.allclose(found[key].double(), wanted[key], atol=1e-6), key


def test_swa_is_the_mean_from_three_quarters_on() -> None:
    module = network()
    average = Swa(module)
    history = run(average, module)
    late = [state for step, state in enumerate(history) if (step + 1) / STEPS >= 0.75]
    assert average.facts() == {"count": len(late)} == {"count": 4}
    found = shown(average, module)
    for key in ("0.weight", "3.bias", "1.running_mean"):
        mean = torch.stack([state[key] for state in late]).mean(dim=0)
        assert torch.allclose(found[key], mean, atol=1e-6), key


def test_swa_shows_the_network_itself_before_it_starts() -> None:
    module = network()
    average = Swa(module)
    run(average, module, 0, 8)
    assert same(shown(average, module), state_of(module))


def test_lookahead_pulls_the_fast_weights_every_few_steps() -> None:
    module = network()
    slow = state_of(module)
    average = Lookahead(module, every=3, share=0.25)
    for step in range(6):
        walk(module, step)
        fast = state_of(module)
        average.update(module, step / 6)
        if step % 3 != 2:
            assert same(state_of(module), fast)
            continue
        for key, value in module.state_dict().items():
            if key in dict(module.named_parameters()):
                slow[key] = slow[key] + 0.25 * (fast[key] - slow[key])
                assert torch.allclose(value, slow[key], atol=1e-6)
            else:
                assert torch.equal(value, fast[key])


def test_lookahead_shows_the_slow_weights_between_its_pulls() -> None:
    module = network()
    average = Lookahead(module, every=3)
    run(average, module, 0, 3)
    pulled = state_of(module)
    walk(module, 3)
    average.update(module, 0.5)
    assert not torch.equal(module[0].weight, pulled["0.weight"])
    assert torch.equal(shown(average, module)["0.weight"], pulled["0.weight"])


# Where the tensors stand


def test_a_buffer_that_a_module_replaces_is_followed() -> None:
    module = network()
    average = Ema(module, decay=0.0)
    module[1].running_mean = torch.full((3,), 5.0)
    average.update(module, 0.5)
    assert average.tensors()["1.running_mean"].tolist() == [5, 5, 5]


def test_shared_tensors_are_held_once_and_another_network_can_be_shown() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    assert set(floats_of(module, buffers=True)) == {"0.weight", "0.bias", "1.bias"}
    first = network()
    average = Ema(first, decay=0.5)
    run(average, first)
    other = copy.deepcopy(first)
    assert same(shown(average, other), shown(average, first))


def test_an_unknown_average_is_an_error_with_the_closest_name() -> None:
    with pytest.raises(UsageError, match="ema"):
        start_average(network(), "emma")
