"""What the tests of training share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from trimtab.machine import failpoints
from trimtab.train import loop

Stop = Callable[..., None]


@pytest.fixture(autouse=True)
def no_failpoint_stays_armed() -> Iterator[None]:
    yield
    failpoints.arm(None)


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Stop:
    """Send this process a signal after a number of updates."""

    def arrange(updates: int, number: int = signal.SIGINT) -> None:
        done = 0
        real = loop.train_step

        def step(*given: Any) -> Any:
            nonlocal done
            done += 1
            value = real(*given)
            if done == updates:
                os.kill(os.getpid(), number)
            return value

        monkeypatch.setattr(loop, "train_step", step)

    return arrange
