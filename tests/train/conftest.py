"""What the tests of training share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from trimtab.machine import failpoints


@pytest.fixture(autouse=True)
def no_failpoint_stays_armed() -> Iterator[None]:
    yield
    failpoints.arm(None)
