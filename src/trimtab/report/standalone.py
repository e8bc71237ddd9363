"""Makes a picture a file of its own: an SVG with its colours, light and dark, and nothing else."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from trimtab.report.svg import element, shown

COLOUR = re.compile(r"--([\w-]+):\s*([^;]+);")
NAMED = re.compile(r"var\(--([\w-]+)\)")
DARK = "@media screen and (prefers-color-scheme: dark)"


def environment() -> Environment:
    """Return a template environment; all text is escaped and unknown names are errors."""
    return Environment(
        loader=PackageLoader("trimtab", "report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def sheet(width: float, height: float, label: str, *children: str) -> str:
    """Return a whole SVG file, read out as `label`, that looks as the report's pictures do."""
    paper = element("rect", width=width, height=height, class_="paper")
    return str(element(
        "svg", element("title", label), element("style", styles()), paper, *children,
        xmlns="http://www.w3.org/2000/svg", width=width, height=height,
        viewBox=f"0 0 {shown(width)} {shown(height)}", role="img", aria_label=label,
        class_="picture",
    ))  # fmt: skip


@cache
def styles() -> str:
    """Return the style of pictures with its colours written out, for viewers without variables."""
    light, dark = palettes()
    rules = (
        environment().get_template("picture.css.j2").render() + ".paper { fill: var(--card); }\n"
    )
    plain, night = coloured(rules, light), coloured(rules, dark)
    return f"\n{plain}{DARK} {{\n{night}}}\n"


def palettes() -> tuple[dict[str, str], dict[str, str]]:
    """Return the report's colours and fonts by name, for light and for dark screens."""
    day, _, night = environment().get_template("colours.css.j2").render().partition(DARK)
    light = dict(COLOUR.findall(day))
    return light, light | dict(COLOUR.findall(night))


def coloured(rules: str, palette: dict[str, str]) -> str:
    """Return the rules with every variable's value in its place."""
    return NAMED.sub(lambda found: palette[found[1]], rules)
