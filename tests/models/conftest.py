"""Schemas without data, and one thread."""

from __future__ import annotations

import pytest
import torch

from trimtab.records.schema import Schema


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def colour() -> Schema:
    """32x32 colour pictures of ten classes."""
    return Schema(classes=tuple("abcdefghij"), channels=3, height=32, width=32,
                  mean=(125.0, 123.0, 114.0), std=(63.0, 62.0, 67.0))  # fmt: skip


@pytest.fixture(scope="session")
def grey() -> Schema:
    """8x8 grey pictures of three classes."""
    return Schema(classes=("a", "b", "c"), channels=1, height=8, width=8, mean=(78.0,), std=(96.0,))
