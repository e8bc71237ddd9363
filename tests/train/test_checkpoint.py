"""A checkpoint gives back what was saved, bit for bit, and a damaged one is never used."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load
from torch import Tensor, nn

from trimtab.errors import DivergedError, MachineError, UsageError
from trimtab.machine import failpoints
from trimtab.train import steps
from trimtab.train.checkpoint import Checkpoint, Checkpoints
from trimtab.train.snapshot import DTYPES, METADATA, safetensors_of, take
from trimtab.train.state import (
    optimizer_tensors,
    random_tensors,
    restore_optimizer,
    restore_random,
    restore_training,
    training_state,
)

FILES = ["weights.safetensors", "best.safetensors", "state.json", "manifest.json"]
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adam fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), foreach=False),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.01, max_iter=2),
}


def state_at(step: int) -> dict[str, dict[str, Tensor]]:
    return {"weights": {"w": torch.full((50,), float(step)), "n": torch.tensor(step)},
            "best": {"w": torch.full((3, 2), step / 3, dtype=torch.bfloat16)}}  # fmt: skip


def save(checkpoints: Checkpoints, *numbers: int) -> None:
    for step in numbers:
        checkpoints.save(step, state_at(step), {"step": step})
    checkpoints.wait()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same(a: Tensor, b: Tensor) -> bool:
    """Whether type, shape and every bit agree: unlike `torch.equal`, NaN is NaN and -0 is not 0."""
    bits = [one.contiguous().reshape(-1).view(torch.uint8) for one in (a, b)]
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(*bits)


def assert_is(found: Checkpoint | None, step: int) -> None:
    assert found is not None
    assert found.step == step
    assert found.facts == {"step": step}
    for group, tensors in state_at(step).items():
        kept = found.tensors(group)
        assert kept.keys() == tensors.keys()
        assert all(same(kept[name], tensors[name]) for name in tensors)


# What was saved comes back


def test_the_newest_two_are_kept_and_hold_what_was_saved(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.newest() is None
        save(checkpoints, 1, 2, 30)
        assert_is(checkpoints.newest(), 30)
    assert names(tmp_path / "c") == ["step-00000002", "step-00000030"]
    assert names(tmp_path / "c" / "step-00000030") == sorted(FILES)
    assert checkpoints.warnings == []


def test_what_changes_after_save_returns_is_not_in_the_file(tmp_path: Path) -> None:
    failpoints.arm("checkpoint.before_file:sleep")
    tensors, facts = state_at(5), {"step": 5}
    with Checkpoints(tmp_path / "c", every_seconds=1e-9) as checkpoints:
        checkpoints.save(5, tensors, facts)
        assert not checkpoints.due()  # it is really still on its way
        facts["step"] = 6
        for group in tensors.values():
            for tensor in group.values():
                tensor.zero_()
    assert_is(checkpoints.newest(), 5)


def test_memory_of_the_last_save_is_used_again_unless_a_shape_is_another() -> None:
    first = take({"a": {"x": torch.ones(4, 4), "y": torch.ones(3)}, "b": {"z": torch.ones(2)}}, {})
    again = take({"a": {"x": torch.zeros(4, 4), "y": torch.zeros(5)}, "b": {"z": torch.zeros(2)}},
                 first)  # fmt: skip
    assert again["b"] is first["b"]
    assert again["a"] is not first["a"]
    assert not any(tensor.any() for copy in again.values() for tensor in copy.tensors.values())


def test_what_lies_side_by_side_is_written_at_once() -> None:
    plain = {f"{number:02}": torch.rand(3, number % 4) for number in range(50)}
    turned = {**plain, "25": torch.rand(4, 3).T}
    pieces = list(safetensors_of(take({"a": plain}, {})["a"]))
    others = list(safetensors_of(take({"a": turned}, {})["a"]))
    assert len(pieces) == 2  # the header and the values
    assert len(others) == 4
    assert load(b"".join(others))["25"].equal(turned["25"])


def test_order_in_memory_views_and_tied_weights_do_not_matter(tmp_path: Path) -> None:
    base = torch.arange(240.0).reshape(2, 5, 4, 6)
    last = base.to(memory_format=torch.channels_last)
    odd = {"last": last, "cut": base[:, 1:3, ::2], "wide": torch.ones(1).expand(7), "tied": base,
           "again": base}  # fmt: skip
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"weights": odd}, {})
        found = checkpoints.newest()
    assert found is not None
    kept = found.tensors("weights")
    assert all(same(kept[name], odd[name]) for name in odd)


def test_the_same_step_saved_again_gives_the_later_one(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, 7)
        checkpoints.save(7, state_at(8), {"step": 8})
        found = checkpoints.newest()
    assert found is not None
    assert found.step == 7
    assert found.facts == {"step": 8}


def test_a_moved_or_copied_folder_is_still_whole_and_names_no_place(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, 1, 2)
    shutil.copytree(tmp_path / "c", tmp_path / "copy" / "c")
    os.rename(tmp_path / "c", tmp_path / "moved")
    for folder in (tmp_path / "copy" / "c", tmp_path / "moved"):
        assert_is(Checkpoints(folder).newest(), 2)
    for path in (tmp_path / "moved" / "step-00000002").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()


def test_a_save_is_due_after_its_seconds_and_not_while_one_is_on_its_way(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "a", every_seconds=3600) as later:
        assert not later.due()
    failpoints.arm("checkpoint.before_file:sleep")
    with Checkpoints(tmp_path / "b", every_seconds=1e-9) as always:
        assert always.due()
        always.save(1, state_at(1), {})
        assert not always.due()
        always.wait()
        assert always.due()


KEYS = st.text(max_size=8).filter(lambda name: name != METADATA)
SHAPES = st.lists(st.integers(0, 4), max_size=3)


@st.composite
def tensors_of_any_kind(draw: st.DrawFn) -> Tensor:
    dtype, shape = draw(st.sampled_from(list(DTYPES))), draw(SHAPES)
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = draw(st.binary(min_size=count, max_size=count))
    if dtype is torch.bool:
        raw = bytes(one % 2 for one in raw)
    flat = torch.tensor(list(raw), dtype=torch.uint8)
    return flat.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_weights_that_are_no_numbers_are_not_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    fine = {"mask": torch.tensor([-torch.inf, 0.0]), "none": torch.empty(0), "n": torch.tensor(3)}
    spoiled = torch.ones(3, 4, dtype=dtype)
    spoiled[1, 2] = torch.nan
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"weights": fine}, {})
        checkpoints.save(2, {"weights": {**fine, "w": spoiled}}, {})
        with pytest.raises(DivergedError, match="step 2: NaN in w; not kept"):
            checkpoints.wait()
    assert names(tmp_path / "c") == ["step-00000001"]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(KEYS, tensors_of_any_kind(), max_size=5))
def test_any_tensors_come_back_bit_for_bit(tensors: dict[str, Tensor]) -> None:
    with tempfile.TemporaryDirectory() as place:
        with Checkpoints(Path(place) / "c") as checkpoints:
            checkpoints.save(1, {"any": tensors}, {})
            found = checkpoints.newest()
        assert found is not None
        kept = found.tensors("any")
        assert kept.keys() == tensors.keys()
        assert all(same(kept[name], tensors[name]) for name in tensors)
        assert names(Path(place) / "c") == ["step-00000001"]


def test_values_in_the_file_are_aligned_for_their_type() -> None:
    tensors = {"a": torch.ones(3, dtype=torch.uint8), "b": torch.ones(2), "c": torch.ones(1).half(),
               "d": torch.ones(1, dtype=torch.float64)}  # fmt: skip
    content = b"".join(safetensors_of(take({"a": tensors}, {})["a"]))
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    for name, tensor in tensors.items():
        assert (8 + length + header[name]["data_offsets"][0]) % tensor.element_size() == 0


@pytest.mark.parametrize(
    "odd",
    [torch.ones(2, dtype=torch.complex128), torch.ones(2, 2).to_sparse()],
    ids=["complex128", "sparse"],
)
def test_a_tensor_that_cannot_be_kept_is_named(tmp_path: Path, odd: Tensor) -> None:
    with (
        Checkpoints(tmp_path / "c") as checkpoints,
        pytest.raises(UsageError, match="weights/odd"),
    ):
        checkpoints.save(1, {"weights": {"odd": odd}}, {})
    assert names(tmp_path / "c") == []


def test_facts_that_are_no_json_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        for odd in (float("nan"), {1, 2}):
            with pytest.raises((ValueError, TypeError), match="JSON"):
                checkpoints.save(1, state_at(1), {"odd": odd})
    assert names(tmp_path / "c") == []


def test_a_group_that_is_not_there_is_an_error_that_lists_those_that_are(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, 1)
        found = checkpoints.newest()
    assert found is not None
    with pytest.raises(UsageError, match=r"'average', only .*'best', 'weights'"):
        found.tensors("average")


# Damage


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    """Change one bit in the middle: the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, flip, os.unlink])
def test_a_damaged_file_is_named_and_the_previous_checkpoint_is_used(
    tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, 1, 2)
    damage(tmp_path / "c" / "step-00000002" / name)
    after = Checkpoints(tmp_path / "c")
    assert_is(after.newest(), 1)
    assert len(after.warnings) == 1
    assert f"step-00000002 ({name}: " in after.warnings[0]
    assert "going on from step-00000001" in after.warnings[0]


def refuse(path: Path, **_: Any) -> Any:
    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))


def test_a_disk_that_cannot_read_the_newest_is_told_and_the_previous_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, 1, 2)
    real = steps.sha256_file
    monkeypatch.setattr(steps, "sha256_file",
                        lambda path: (refuse if "00002" in str(path) else real)(path))  # fmt: skip
    after = Checkpoints(tmp_path / "c")
    assert_is(after.newest(), 1)
    assert "Input/output error" in after.warnings[0]


@pytest.mark.parametrize("read", [lambda one: one.tensors("weights"), lambda one: one.facts],
                         ids=["tensors", "facts"])  # fmt: skip
def test_a_disk_that_fails_after_the_check_is_an_error_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Checkpoint], Any]
) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, 1)
        found = checkpoints.newest()
    assert found is not None
    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(MachineError, match=r"cannot read .*Input/output error"):
        read(found)


def test_any_flipped_bit_of_the_manifest_is_found(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, 1)
    folder = tmp_path / "c" / "step-00000001"
    content = (folder / "manifest.json").read_bytes()
    assert steps.faults(folder) == []
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        (folder / "manifest.json").write_bytes(changed)
        assert steps.faults(folder), place


def test_all_damaged_is_an_error_with_the_list_and_never_a_silent_start(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, 1, 2)
    flip(tmp_path / "c" / "step-00000001" / "state.json")
    truncate(tmp_path / "c" / "step-00000002" / "weights.safetensors")
    with pytest.raises(MachineError) as caught:
        Checkpoints(tmp_path / "c").newest()
    assert caught.value.exit_code == 6
    assert "step-00000001 (state.json" in caught.value.message
    assert "step-00000002 (weights.safetensors" in caught.value.message


def test_a_checkpoint_under_the_name_of_another_step_is_not_used(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, 1, 2)
    os.rename(tmp_path / "c" / "step-00000001", tmp_path / "c" / "step-00000009")
    assert_is(Checkpoints(tmp_path / "c").newest(), 2)


@pytest.mark.parametrize(
    ("content", "fault"),
    [(b"[]", "manifest.json"), (b'{"version": 2}', "version 2, this trimtab reads 1"),
     (b'{"version": 1}', "manifest.json"),
     (steps.sealed(1, {"../run.json": {"bytes": 1, "sha256": ""}}), "outside of its folder")],
)  # fmt: skip
def test_a_manifest_made_by_others_is_a_fault_and_no_crash(
    tmp_path: Path, content: bytes, fault: str
) -> None:
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(content)
    assert fault in steps.faults(folder)[0]


def test_a_damaged_one_does_not_count_among_the_kept_and_goes_when_two_whole_ones_are_there(
    tmp_path: Path,
) -> None:
    with Checkpoints(tmp_path / "c") as checkpoints:
        save(checkpoints, 1, 9)
        flip(tmp_path / "c" / "step-00000009" / "state.json")
        assert_is(checkpoints.newest(), 1)
        save(checkpoints, 2)
        assert names(tmp_path / "c") == ["step-00000001", "step-00000002"]


# The state of a training


def network_of(dtype: torch.dtype = torch.float32, *, last: bool = True) -> nn.Module:
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
              nn.Linear(16, 2))  # fmt: skip
    order = torch.channels_last if last else torch.contiguous_format
    return nn.Sequential(*layers).to(dtype).to(memory_format=order)


def learn(network: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    dtype = next(network.parameters()).dtype

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = network(torch.randn(8, 3, 4, 4, dtype=dtype)).square().mean()
        loss.backward()
        return loss

    for _ in range(count):
        optimizer.step(closure)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restored_training_goes_on_with_the_same_bits(tmp_path: Path, name: str) -> None:
    last = name != "lbfgs"  # it reads gradients in one order only
    network = network_of(last=last)
    optimizer = OPTIMIZERS[name](network.parameters())
    learn(network, optimizer, 3)
    optimizer.param_groups[0]["weight_decay"] = 0.125
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(3, *training_state(network, optimizer, facts={"epoch": 1}))
        learn(network, optimizer, 3)
        found = checkpoints.newest()
    assert found is not None
    other = network_of(last=last)
    resumed = OPTIMIZERS[name](other.parameters())
    learn(other, resumed, 1)  # what it had learnt by itself must be gone afterwards
    assert restore_training(found, other, resumed) == []
    learn(other, resumed, 3)
    assert found.facts["epoch"] == 1
    want, got = network.state_dict(), other.state_dict()
    assert all(same(want[key], got[key]) for key in want)
    a, b = optimizer_tensors(optimizer), optimizer_tensors(resumed)
    assert a[1] == b[1]
    assert a[0].keys() == b[0].keys()
    assert all(same(a[0][key], b[0][key]) for key in a[0])
    assert all(a[0][key].stride() == b[0][key].stride() for key in a[0])


def test_restored_state_keeps_types_that_torch_would_cast() -> None:
    network = network_of(torch.bfloat16)
    optimizer = OPTIMIZERS["momentum"](network.parameters())
    learn(network, optimizer, 1)
    first = next(network.parameters())
    optimizer.state[first]["momentum_buffer"] = torch.full(first.shape, 1 / 3)
    tensors, facts = optimizer_tensors(optimizer)
    other = OPTIMIZERS["momentum"](network_of(torch.bfloat16).parameters())
    restore_optimizer(other, tensors, json.loads(json.dumps(facts)))
    kept = other.state[other.param_groups[0]["params"][0]]["momentum_buffer"]
    assert same(kept, torch.full(first.shape, 1 / 3))
    assert kept.data_ptr() != tensors["0.momentum_buffer"].data_ptr()


def test_restored_settings_keep_tuples_infinities_and_lists() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    odd = {"betas": (0.1, (2, None)), "low": float("-inf"), "names": ["a", True]}
    optimizer.param_groups[0].update(copy.deepcopy(odd))
    tensors, facts = optimizer_tensors(optimizer)
    optimizer.param_groups[0].update(betas=0, low=0, names=0)
    restore_optimizer(optimizer, tensors, json.loads(json.dumps(facts, allow_nan=False)))
    assert {key: optimizer.param_groups[0][key] for key in odd} == odd


@pytest.mark.parametrize("change", ["kind", "count"])
def test_state_of_another_optimizer_is_refused(change: str) -> None:
    tensors, facts = optimizer_tensors(OPTIMIZERS["adam"](network_of().parameters()))
    parameters = list(network_of().parameters())
    other = "nadam" if change == "kind" else "adam"
    wrong = OPTIMIZERS[other](parameters if change == "kind" else parameters[1:])
    with pytest.raises(UsageError, match="the checkpoint holds a Adam of"):
        restore_optimizer(wrong, tensors, facts)


def test_state_that_is_neither_tensor_nor_plain_is_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    optimizer.param_groups[0]["odd"] = object()
    with pytest.raises(UsageError, match=r"group0\.odd"):
        optimizer_tensors(optimizer)


def test_random_numbers_go_on_where_they_were() -> None:
    states = random_tensors()
    want = torch.rand(5)
    assert not torch.equal(torch.rand(5), want)
    assert restore_random(states) == []
    assert torch.equal(torch.rand(5), want)


def test_generators_that_are_not_here_are_named() -> None:
    states = random_tensors()
    missing = f"cuda{torch.cuda.device_count()}"
    assert restore_random({**states, missing: states["cpu"]}) == [missing]


@pytest.mark.gpu
def test_state_of_a_graphics_processor_comes_back_to_it(tmp_path: Path) -> None:
    network = network_of().cuda()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    parameter = next(network.parameters())
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, *training_state(network, optimizer, facts={}))
        want = [torch.rand(3, device="cuda"), parameter.detach().clone()]
        found = checkpoints.newest()
    assert found is not None
    parameter.data.zero_()
    restore_training(found, network, optimizer)
    assert torch.equal(parameter, want[1])
    assert torch.equal(torch.rand(3, device="cuda"), want[0])
    assert all(one.is_cuda for one in optimizer.state[parameter].values())
