"""A finding: a named fault with severity, evidence and remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from trimtab.machine.progress import say


class Finding(BaseModel):
    """Name a fault of data or training, show the evidence and say what to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    severity: Literal["info", "warning", "error"]
    message: str
    evidence: dict[str, Any] = {}
    remedy: str = ""


def warn(findings: Iterable[Finding]) -> None:
    """Say the warnings and errors among `findings`, a line each, unless quiet."""
    for finding in findings:
        if finding.severity != "info":
            say(f"{finding.severity}: {finding.message}")
