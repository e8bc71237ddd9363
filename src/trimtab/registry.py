"""Find a part by name, by `package.module:function`, or take a callable as it is."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from trimtab.errors import UsageError


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the hint for an unknown `word`: the closest known name, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"


Part = TypeVar("Part", bound=Callable[..., Any])


def lookup(kind: str, table: Mapping[str, Part], part: str | Part) -> Part:
    """Resolve `part` to a callable of registry `kind`.

    A callable is returned as it is; `"package.module:function"` is imported; anything else is a
    key of `table`. Raises UsageError with the closest name for an unknown part.
    """
    if not isinstance(part, str):
        return part
    if part in table:
        return table[part]
    if ":" in part:
        return import_path(kind, part)  # type: ignore[no-any-return]
    raise UsageError(f"unknown {kind} '{part}'", did_you_mean(part, table))


def import_path(kind: str, path: str) -> Any:
    """Import `package.module:function` given by the user's own recipe or code."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"cannot import {kind} '{path}': {error}",
            "write it as package.module:function, importable from where you run trimtab",
        ) from error
