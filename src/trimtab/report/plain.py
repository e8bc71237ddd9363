"""Makes foreign text harmless to read: no control or direction characters, bounded length."""

from __future__ import annotations

import math
import unicodedata
from typing import Any

KEPT = frozenset("\n\t\u200c\u200d")  # joiners build emoji families and Persian or Indic words
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
LARGEST = 1e300
LIMIT = 1000


def plain(text: str, limit: int = LIMIT) -> str:
    """Return `text` with invisible characters spelled out, at most about `limit` characters.

    Control, format and direction characters and lone surrogates become e.g. `⟨U+202E⟩`, so that
    nothing can hide or reverse its surroundings. HTML is escaped later, by the page.
    """
    rest = len(text) - limit
    head = text if rest <= 0 else text[:limit]
    if not head.isprintable():
        head = "".join(visible(character) for character in head)
    return head if rest <= 0 else f"{head}… (+{rest:,} characters)"


def visible(character: str) -> str:
    """Return a character as it is, or its code point where it would be invisible."""
    if character in KEPT or unicodedata.category(character) not in HIDDEN:
        return character
    return f"⟨U+{ord(character):04X}⟩"


def clean(value: Any, limit: int = LIMIT) -> Any:
    """Return a JSON value with all its text plain and every number finite; others become None."""
    if isinstance(value, str):
        return plain(value, limit)
    if isinstance(value, dict):
        return {plain(str(key), limit): clean(item, limit) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item, limit) for item in value]
    if isinstance(value, int | float):
        return value if math.isfinite(value) and abs(value) < LARGEST else None
    return value


def clip(text: str, width: int) -> str:
    """Shorten `text` to `width` columns, where wide East Asian characters count two."""
    columns = 0
    for index, character in enumerate(text):
        columns += column_width(character)
        if columns > width:
            return text[: max(1, index - 1)].rstrip() + "…"
    return text


def columns(text: str) -> int:
    """Return how many columns `text` takes."""
    return sum(column_width(character) for character in text)


def column_width(character: str) -> int:
    """Return 2 for wide characters, 0 for combining ones, else 1."""
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
