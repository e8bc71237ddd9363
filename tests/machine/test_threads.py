"""As many threads compute as there are cores to use: by affinity, by quota, one per core."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trimtab.machine import processor
from trimtab.machine.processor import core_count, quota, siblings, thread_count
from trimtab.machine.threads import SPINS, calm_threads, single_thread


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight logical processors on four cores, none of them forbidden, in a container."""
    monkeypatch.setattr(processor, "CGROUPS", tmp_path)
    monkeypatch.setattr(processor, "allowed", lambda: set(range(8)))
    monkeypatch.setattr(processor, "siblings", lambda number: f"{number % 4},{number % 4 + 4}")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # so that it is put back afterwards, set or not
        monkeypatch.delenv(name)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "cores"),
    [("150000 100000\n", 2), ("50000 100000", 1), ("400000 100000", 4), ("max 100000", 8),
     ("nonsense", 8), ("100000 0", 8), ("", 8)],
)  # fmt: skip
def test_quota_of_a_container_bounds_the_cores(machine: Path, text: str, cores: int) -> None:
    (machine / "cpu.max").write_text(text)
    assert core_count() == cores
    assert thread_count() == min(4, cores)


def test_quota_of_older_containers_is_read_too(machine: Path) -> None:
    (machine / "cpu").mkdir()
    (machine / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (machine / "cpu/cpu.cfs_quota_us").write_text("200000\n")
    assert quota() == 2
    (machine / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert quota() == math.inf


def test_affinity_bounds_the_threads(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "allowed", lambda: {0, 4})
    assert (core_count(), thread_count()) == (2, 1)


def test_openmp_hears_of_it_unless_the_user_said_otherwise(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "cpu.max").write_text("100000 100000")
    calm_threads()
    assert (os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"]) == ("1", "PASSIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    calm_threads()
    assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("wanted", ["ACTIVE", "PASSIVE"])
def test_threads_wait_a_little_unless_the_user_chose_how(
    machine: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", wanted)
    calm_threads()
    assert os.environ["OMP_WAIT_POLICY"] == wanted
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    calm_threads()
    assert os.environ["GOMP_SPINCOUNT"] == str(SPINS)


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Three threads compute in torch, whatever the processor has."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_a_single_thread_gives_way_to_as_many_as_before() -> None:
    with single_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_a_failure_leaves_the_threads_as_they_were() -> None:
    with pytest.raises(ZeroDivisionError), single_thread():
        raise ZeroDivisionError
    assert torch.get_num_threads() == 3


def test_siblings_are_read_from_the_system(tmp_path: Path) -> None:
    (tmp_path / "cpu5/topology").mkdir(parents=True)
    (tmp_path / "cpu5/topology/thread_siblings_list").write_text("1,5\n")
    assert siblings(5, tmp_path) == "1,5"
    assert siblings(6, tmp_path) == "6"
