"""One look tells whether an update is sound; in fp16 an overflow costs that update and no more."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab.data.dataset import Batch
from trimtab.errors import DivergedError
from trimtab.train.log import Clock
from trimtab.train.loop import set_rate
from trimtab.train.scale import FIRST_FACTOR, GROWTH_STEPS, Scale, scale_for
from trimtab.train.settings import resolve
from trimtab.train.update import train_step

CPU = torch.device("cpu")


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf])
def test_one_bad_value_anywhere_is_found_and_the_next_look_is_fresh(
    place: int, fault: float
) -> None:
    scale = Scale(CPU)
    gradients = [torch.zeros(40), torch.ones(3, 5), torch.randn(2, 2, 2)]
    assert scale.unscale(gradients) is True
    gradients[place].view(-1)[-1] = fault
    assert scale.unscale(gradients) is False
    gradients[place].view(-1)[-1] = 0
    assert scale.unscale(gradients) is True


def test_large_empty_and_no_gradients_are_finite() -> None:
    scale = Scale(CPU)
    assert scale.unscale([torch.full((9,), 3e38), torch.full((9,), -3e38), torch.zeros(0)])
    assert scale.unscale([torch.zeros(0)])
    assert scale.unscale([])


def test_looking_without_a_factor_changes_no_bit() -> None:
    values = torch.tensor([1e-45, -0.0, 0.1, -3e38, 1e-39])
    looked = values.clone()
    Scale(CPU).unscale([looked])
    assert torch.equal(looked.view(torch.int32), values.view(torch.int32))


def test_the_factor_halves_after_an_overflow_and_doubles_after_a_long_calm() -> None:
    scale = scale_for("fp16", CPU)
    assert not scale.unscale([torch.tensor([math.inf])])
    assert (scale.factor, scale.skipped) == (FIRST_FACTOR / 2, 1)
    values = torch.tensor([FIRST_FACTOR / 2])
    assert scale.unscale([values])
    assert values.item() == 1
    for _ in range(GROWTH_STEPS - 1):
        scale.unscale([])
    assert (scale.factor, scale.skipped) == (FIRST_FACTOR, 1)
    again = scale_for("fp16", CPU)
    again.restore(scale.facts())
    assert again.facts() == scale.facts()
    assert again.inverse == scale.inverse


def test_a_scale_outlives_a_part_of_the_training_in_another_precision() -> None:
    half, other, again = (scale_for(precision, CPU) for precision in ("fp16", "bf16", "fp16"))
    half.unscale([torch.tensor([math.inf])])
    other.restore(half.facts())
    assert other.factor == 1
    again.restore(other.facts())
    assert again.facts() == half.facts()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_other_precisions_have_no_factor_and_it_stays_so(precision: str) -> None:
    scale = scale_for(precision, CPU)
    scale.unscale([torch.tensor([math.nan])])
    assert scale.facts() == {"factor": 1.0, "clean": 0, "skipped": 0}


# In a step


class Burst(nn.Module):
    """A network whose gradients are infinite in its first `left` steps."""

    def __init__(self, left: int = 0) -> None:
        super().__init__()
        self.layer, self.left = nn.Linear(1, 10), left
        self.layer.weight.register_hook(self.spoil)

    def spoil(self, gradient: Tensor) -> Tensor:
        self.left -= 1
        return gradient * math.inf if self.left >= 0 else gradient

    def forward(self, pixels: Tensor) -> Tensor:
        return self.layer(pixels.mean((2, 3)) / 255)


class Normed(Burst):
    """The same with a batch norm behind its layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(10)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.norm(super().forward(pixels))


def settled(network: nn.Module, dataset: Any, recipe: Any, **changes: Any) -> Any:
    fixed = {"train__layout": "contiguous", "train__average": "ema", **changes}
    settings = resolve(network, dataset, recipe.override(**fixed), None)
    settings.scale = scale_for("fp16", CPU)
    return settings


def batch() -> Batch:
    pixels = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 255
    return Batch(pixels, torch.arange(12) % 10, torch.arange(12))


def test_a_burst_of_overflows_is_counted_and_moves_neither_weights_nor_averages(
    tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network = Burst()
    settings = settled(network, tiny_dataset, tiny_recipe)
    network.left = 3
    before, clock = network.layer.weight.detach().clone(), Clock(None, total_steps=100)
    rates = []
    for _ in range(4):
        assert torch.equal(network.layer.weight, before)
        rates.append(set_rate(settings, clock.progress))
        value = train_step(network, batch(), settings, clock)
        assert value.item() == pytest.approx(math.log(10), rel=0.5), "the loss is without scale"
        clock.step += 1
    assert settings.scale.facts() == {"factor": FIRST_FACTOR / 8, "clean": 1, "skipped": 3}
    assert not torch.equal(network.layer.weight, before)
    assert settings.average.count == 1
    assert next(iter(settings.optimizer.state.values()))["step"] == 1
    assert rates == [settings.peak * settings.schedule(step / 100) for step in range(4)]


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_an_overflow_before_the_second_look_leaves_the_statistics_of_norms_alone(
    precision: str, tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network = Normed()
    settings = settled(network, tiny_dataset, tiny_recipe, regularize__sharpness=0.1)
    settings.scale = scale_for(precision, CPU)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        network(batch().inputs)
    once = {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict(before)
    network.left = 1
    try:
        train_step(network, batch(), settings, Clock(None))
        assert precision == "fp16"
    except DivergedError:
        assert precision == "fp32"
    assert once["norm.running_mean"].isfinite().all()
    after = network.state_dict()
    assert [key for key in once if not torch.equal(after[key], once[key])] == []
    assert network.norm.track_running_stats


@pytest.mark.parametrize(
    "changes",
    [{}, {"train__micro_batch": 5}, {"regularize__sharpness": 0.1},
     {"regularize__clip_norm": 0.01, "regularize__l1": 0.1}],
)  # fmt: skip
def test_the_scale_leaves_no_trace_in_an_update(
    changes: dict[str, Any], tiny_dataset: Any, tiny_recipe: Any
) -> None:
    moved = []
    for precision in ("fp16", "fp32"):
        torch.manual_seed(0)
        network = Burst()
        settings = settled(network, tiny_dataset, tiny_recipe, **changes)
        settings.scale = scale_for(precision, CPU)
        value = train_step(network, batch(), settings, Clock(None, total_steps=100, step=30))
        moved.append((network.layer.weight.detach().clone(), value))
    torch.testing.assert_close(moved[0], moved[1])


def test_an_overflow_that_no_scale_can_hold_is_a_divergence(
    tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network = Burst()
    settings = settled(network, tiny_dataset, tiny_recipe)
    network.left = 99
    while settings.scale.factor > 1:
        train_step(network, batch(), settings, Clock(None))
    with pytest.raises(DivergedError, match="a gradient is not finite"):
        train_step(network, batch(), settings, Clock(None))
    settings.loss = lambda outputs, batch: outputs.sum(1) * math.nan
    settings.scale = scale_for("fp16", CPU)
    with pytest.raises(DivergedError, match="the loss is nan"):
        train_step(network, batch(), settings, Clock(None))
