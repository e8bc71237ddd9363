"""A finding: a named fault with severity, evidence and remedy."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Finding(BaseModel):
    """Name a fault of data or training, show the evidence and say what to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    severity: Literal["info", "warning", "error"]
    message: str
    evidence: dict[str, Any] = {}
    remedy: str = ""
