"""One update does what the recipe says, in every combination of its switches."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab.data.dataset import Batch
from trimtab.errors import DivergedError, MachineError, UsageError
from trimtab.machine.progress import OUTPUT
from trimtab.models.build import build
from trimtab.models.quick import quick_layers
from trimtab.train import update
from trimtab.train.log import Clock
from trimtab.train.loop import set_rate, train_network
from trimtab.train.resolution import pixels_at, resized, tell_unshrunk
from trimtab.train.settings import resolve
from trimtab.train.update import accumulate, gradients_of, passes, train_step


class Flat(nn.Module):
    """A network without norms, which sees batches of any side."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 10)
        self.sides: list[int] = []
        self.sizes: list[int] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.sides.append(pixels.shape[-1])
        self.sizes.append(len(pixels))
        return self.layer(pixels.mean((2, 3)) / 255)


def batch_of(count: int = 12, side: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(count, 1, side, side, generator=generator) * 255
    return Batch(pixels, torch.arange(count) % 10, torch.arange(count) + 100)


def first_of(batch: Batch, count: int) -> Batch:
    return Batch(*(tensor[:count] for tensor in batch))


def settled(network: nn.Module, dataset: Any, recipe: Any, **changes: Any) -> Any:
    fixed = {"train__precision": "fp32", "train__layout": "contiguous"}
    return resolve(network, dataset, recipe.override(**fixed, **changes), None)


def clock_at(progress: float) -> Clock:
    return Clock(None, total_steps=100, step=round(100 * progress))


def test_small_passes_add_up_to_the_gradient_of_the_whole_batch(
    tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network = Flat()
    settings = settled(network, tiny_dataset, tiny_recipe)
    whole = accumulate(network, batch_of(), settings)
    wanted = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    settings.micro_batch = 5
    network.sizes.clear()
    parts = accumulate(network, batch_of(), settings)
    assert network.sizes == [4, 4, 4]
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close([p.grad for p in network.parameters()], wanted)


def test_small_passes_add_up_where_classes_weigh_differently(
    tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network = Flat()
    settings = settled(network, tiny_dataset, tiny_recipe, train__class_weights="balanced")
    settings.class_weights[:5] = 3.0  # in place: the loss holds the same tensor
    whole = accumulate(network, batch_of(), settings)
    wanted = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    settings.micro_batch = 4
    torch.testing.assert_close(accumulate(network, batch_of(), settings), whole)
    torch.testing.assert_close([p.grad for p in network.parameters()], wanted)


@pytest.mark.parametrize("native", [True, False])
def test_looking_for_hard_samples_leaves_the_statistics_of_norms_alone(
    native: bool, tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network = build(tiny_dataset.schema, tiny_recipe).train()
    settings = settled(network, tiny_dataset, tiny_recipe, train__hard_fraction=0.5)
    before = {key: value.clone() for key, value in network.named_buffers() if "mean" in key}
    with quick_layers(network) if native else nullcontext():
        found = update.hardest(network, batch_of(), settings)
    assert len(found.ids) == 6
    after = dict(network.named_buffers())
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert all(m.momentum == 0.1 for m in network.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize(("count", "size"), [(7, 2), (5, 4), (9, 8), (3, 1), (64, 64), (65, 2)])
def test_no_pass_holds_a_single_sample_and_none_is_lost(count: int, size: int) -> None:
    found = list(passes(batch_of(count), size))
    assert all(len(part.ids) > 1 for part, _ in found)
    assert torch.cat([part.ids for part, _ in found]).tolist() == batch_of(count).ids.tolist()
    assert sum(share for _, share in found) == pytest.approx(1)


def test_memory_that_runs_out_halves_the_passes_and_keeps_the_batch(
    tiny_dataset: Any, tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = Flat()
    settings = settled(network, tiny_dataset, tiny_recipe, train__batch_size=12)
    wanted = accumulate(network, batch_of(), settings)
    real = accumulate

    def greedy(network: nn.Module, batch: Batch, settings: Any) -> Tensor:
        if settings.micro_batch > 3:
            raise torch.OutOfMemoryError
        return real(network, batch, settings)

    monkeypatch.setattr(update, "accumulate", greedy)
    torch.testing.assert_close(gradients_of(network, batch_of(), settings), wanted)
    assert settings.micro_batch == 3

    def never(*given: Any) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(update, "accumulate", never)
    with pytest.raises(MachineError, match="two samples"):
        gradients_of(network, batch_of(), settings)


def test_other_errors_of_a_network_are_not_taken_for_a_lack_of_memory(
    tiny_dataset: Any, tiny_recipe: Any
) -> None:
    settings = settled(Flat(), tiny_dataset, tiny_recipe)
    with pytest.raises(RuntimeError, match=r"size mismatch|cannot be multiplied"):
        gradients_of(nn.Linear(3, 3), batch_of(), settings)


@pytest.mark.parametrize(("progress", "side"), [(0.0, 16), (0.34, 24), (0.99, 32)])
def test_resolution_grows_with_progress(progress: float, side: int) -> None:
    batch = batch_of(4, 32)
    found = resized(batch, (0.5, 0.75, 1.0), progress)
    assert found.inputs.shape[2:] == (side, side)
    assert found.inputs.mean() == pytest.approx(batch.inputs.mean().item(), rel=0.02)


@pytest.mark.parametrize(("side", "wanted"), [(32, 16), (12, 8), (8, 8), (6, 6)])
def test_small_pictures_are_neither_shrunk_out_of_use_nor_enlarged(side: int, wanted: int) -> None:
    assert pixels_at((side, side), (0.5, 1.0), 0.0) == (wanted, wanted)
    assert pixels_at((side, 40), (0.5, 1.0), 0.0) == (wanted, 20)
    assert pixels_at((side, 40), (0.5, 1.0), 1.0) == (side, 40)


def test_a_resolution_that_no_picture_follows_is_told(
    tiny_dataset: Any, tiny_recipe: Any, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(OUTPUT, "quiet", False)
    larger = SimpleNamespace(schema=SimpleNamespace(input_shape=(1, 8, 32)))
    for sides in ((0.5, 1.0), (1.0,), ()):
        tell_unshrunk(tiny_recipe.override(train__resolution=sides), larger)
    assert capsys.readouterr().err == ""
    tell_unshrunk(tiny_recipe.override(train__resolution=(0.5, 1.0)), tiny_dataset)
    assert "train.resolution changes nothing: pictures of 8x8 pixels" in capsys.readouterr().err


def test_a_last_sample_that_joined_the_batch_before_it_is_no_pass_of_its_own(
    tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network = Flat()
    settings = settled(network, tiny_dataset, tiny_recipe, train__batch_size=4)
    train_step(network, batch_of(5), settings, clock_at(0.0))
    assert network.sizes[-1] == 5


def test_only_the_samples_of_largest_loss_are_learnt_from(
    tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network = Flat()
    settings = settled(network, tiny_dataset, tiny_recipe, train__hard_fraction=0.25)
    batch = batch_of()
    losses = settings.loss(network(batch.inputs), batch)
    found = update.hardest(network, batch, settings)
    assert len(found.ids) == 3
    assert set((found.ids - 100).tolist()) == set(losses.topk(3).indices.tolist())


def test_own_loss_without_samples_cannot_pick_hard_ones(
    tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network = Flat()
    settings = settled(network, tiny_dataset, tiny_recipe, train__hard_fraction=0.5)
    settings.loss = lambda outputs, batch: outputs.mean()
    with pytest.raises(UsageError, match="hard_fraction"):
        train_step(network, batch_of(), settings, clock_at(0))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_update_that_is_not_finite_is_refused_before_it_happens(
    where: str, tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network = Flat()
    settings = settled(network, tiny_dataset, tiny_recipe)
    before = network.layer.weight.detach().clone()
    if where == "loss":
        settings.loss = lambda outputs, batch: outputs.sum(1) * torch.nan
    else:
        network.layer.weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(DivergedError, match=f"step 41: .*{where}.* 100, 101, .*, …") as caught:
        train_step(network, batch_of(), settings, clock_at(0.4))
    assert caught.value.exit_code == 7
    assert torch.equal(network.layer.weight, before)


def test_clipping_bounds_the_step_and_l1_pulls_weights_to_zero(
    tiny_dataset: Any, tiny_recipe: Any
) -> None:
    plain = {"train__optimizer": "sgd", "train__momentum": 0, "regularize__weight_decay": 0}
    moved = {}
    for name, changes in {
        "clipped": {"regularize__clip_norm": 1e-3}, "free": {}, "sparse": {"regularize__l1": 10.0},
    }.items():  # fmt: skip
        torch.manual_seed(0)
        network = Flat()
        settings = settled(network, tiny_dataset, tiny_recipe, **plain, **changes)
        before = network.layer.weight.detach().clone()
        set_rate(settings, 0.2)
        train_step(network, batch_of(), settings, clock_at(0.2))
        moved[name] = (network.layer.weight.detach() - before, before)
    assert moved["clipped"][0].norm() <= 0.1 * 1e-3 * 1.01 < moved["free"][0].norm()
    pull = moved["sparse"][0] - moved["free"][0]
    torch.testing.assert_close(pull, -0.1 * 10 * moved["sparse"][1].sign())


def test_sharpness_aware_step_takes_the_gradient_uphill(
    tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network = Flat()
    settings = settled(network, tiny_dataset, tiny_recipe, regularize__sharpness=0.5)
    network.sizes.clear()
    before = network.layer.weight.detach().clone()
    settings.optimizer.step = lambda: None
    train_step(network, batch_of(), settings, clock_at(0.1))
    assert network.sizes == [12, 12]
    assert torch.equal(network.layer.weight, before), "the ascent is taken back"
    uphill = network.layer.weight.grad.clone()
    accumulate(network, batch_of(), settings)
    assert not torch.equal(network.layer.weight.grad, uphill)


def test_sharpness_aware_steps_begin_late_and_go_up_by_a_share_of_the_batch(
    tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network, batch = Flat(), batch_of(160)
    details = {"regularize__sharpness_start": 0.8, "regularize__sharpness_share": 0.25}
    settings = settled(network, tiny_dataset, tiny_recipe, regularize__sharpness=0.5, **details)
    settings.micro_batch, settings.optimizer.step = 160, lambda: None
    network.sizes.clear()
    train_step(network, batch, settings, clock_at(0.79))
    assert network.sizes == [160]
    network.sizes.clear()
    before = network.layer.weight.detach().clone()
    loss = train_step(network, batch, settings, clock_at(0.8))
    assert network.sizes == [40, 160]
    assert torch.equal(network.layer.weight, before), "the ascent is taken back"
    uphill = network.layer.weight.grad.clone()
    assert torch.equal(accumulate(network, first_of(batch, 40), settings), loss)
    weights = list(network.parameters())
    moves = [weight.grad.clone() for weight in weights if weight.grad is not None]
    norm = sum(move.square().sum() for move in moves) ** 0.5
    with torch.no_grad():
        for weight, move in zip(weights, moves, strict=True):
            weight += 0.5 * move / norm
    accumulate(network, batch, settings)
    torch.testing.assert_close(network.layer.weight.grad, uphill)


def test_a_share_of_few_samples_is_no_fewer_than_there_may_be(
    tiny_dataset: Any, tiny_recipe: Any
) -> None:
    network = Flat()
    settings = settled(network, tiny_dataset, tiny_recipe, regularize__sharpness=0.5,
                       regularize__sharpness_share=0.25)  # fmt: skip
    settings.micro_batch = 160
    network.sizes.clear()
    for count in (100, 12):
        train_step(network, batch_of(count), settings, clock_at(0))
    assert network.sizes == [update.LEAST_SHARE, 100, 12, 12]


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("count", [40, 160])
def test_norms_keep_what_the_share_at_the_weights_themselves_shows(
    native: bool, count: int, tiny_dataset: Any, tiny_recipe: Any
) -> None:
    torch.manual_seed(0)
    network = build(tiny_dataset.schema, tiny_recipe).train()
    plain, batch = copy.deepcopy(network), batch_of(160)
    share = {"regularize__sharpness_share": count / 160}
    settings = settled(network, tiny_dataset, tiny_recipe, regularize__sharpness=0.5, **share)
    settings.micro_batch = 160
    with quick_layers(network) if native else nullcontext():
        train_step(network, batch, settings, clock_at(0))
    with torch.no_grad():
        plain(batch.inputs[:count])
    held = dict(network.named_buffers())
    assert held
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(held[name], buffer, msg=name)


@pytest.mark.parametrize(("field", "usual"), [("start", 0.0), ("share", 1.0)])
def test_a_detail_of_sharpness_aware_steps_without_them_is_refused(
    tiny_dataset: Any, tiny_recipe: Any, field: str, usual: float
) -> None:
    with pytest.raises(UsageError, match=rf"sharpness 0.0 takes no .*sharpness_{field}") as caught:
        settled(Flat(), tiny_dataset, tiny_recipe, **{f"regularize__sharpness_{field}": 0.5})
    assert str(caught.value.hint).endswith(f"or set it to {usual}")


def test_frozen_norms_keep_their_statistics_and_others_do_not(
    tiny_dataset: Any, tiny_recipe: Any
) -> None:
    kept = {}
    for freeze in (True, False):
        recipe = tiny_recipe.override(train__epochs=1, model__freeze_norms=freeze)
        network = build(tiny_dataset.schema, recipe)
        train_network(network, tiny_dataset, recipe, None)
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        kept[freeze] = all(not norm.running_mean.any() for norm in norms)
    assert kept == {True: True, False: False}


def test_norms_of_any_number_of_dimensions_follow_the_recipe(
    tiny_dataset: Any, tiny_recipe: Any
) -> None:
    def dense(**changes: Any) -> tuple[nn.BatchNorm1d, Any]:
        norm = nn.BatchNorm1d(16)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), norm, nn.Linear(16, 10))
        return norm, settled(network, tiny_dataset, tiny_recipe, **changes).freeze

    norm, freeze = dense(model__freeze_norms=True, model__norm_momentum=0.3)
    freeze.train_mode()
    assert (norm.training, norm.momentum) == (False, 0.3)
    norm, freeze = dense(train__head_only=0.5)
    trained = []
    for progress in (0.0, 0.5):
        freeze.follow(progress)
        trained.append(norm.training)
    assert trained == [False, True]


def test_held_norms_normalise_by_the_batch_or_as_frozen_and_take_nothing_in() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    network[1].eval()
    network[2].momentum = None
    features = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)) * 3 + 2
    before = {key: value.clone() for key, value in network.named_buffers()}
    with update.held_norms(network):
        held = [norm(features) for norm in network]
    assert all(torch.equal(value, before[key]) for key, value in network.named_buffers())
    for one, norm in zip(held, network, strict=True):
        torch.testing.assert_close(one, norm(features))
    assert network[2].num_batches_tracked == 1


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"train__loss": "mse", "regularize__label_smoothing": 0.2}, "label_smoothing"),
        ({"train__focal_gamma": 3}, "train.focal_gamma"),
        ({"train__schedule": "cosine", "train__cycles": 5}, "train.cycles"),
        ({"train__optimizer": "adagrad", "train__momentum": 0.5}, "train.momentum"),
        ({"train__optimizer": "adadelta", "train__momentum": 0.5}, "train.momentum"),
        ({"train__average": "swa", "train__average_decay": 0.9}, "train.average_decay"),
        ({"train__average": "ema", "train__average_every": 3}, "train.average_every"),
        ({"augment__policy_strength": 0.5}, "augment.policy_strength"),
    ],
)
def test_setting_that_the_chosen_part_does_not_take_is_refused(
    changes: dict[str, Any], place: str, tiny_dataset: Any, tiny_recipe: Any
) -> None:
    with pytest.raises(UsageError, match=place):
        settled(Flat(), tiny_dataset, tiny_recipe, **changes)
