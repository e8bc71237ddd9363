"""Write the reference pages from the code: recipe, verbs, names, parts, exit codes."""

from __future__ import annotations

import ast
import importlib
import inspect
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import typer.main
from pydantic.fields import FieldInfo

import trimtab
from tools.layers import modules_of, name_of, registries_of
from tools.size import SOURCE
from trimtab import cli, errors
from trimtab.records.recipe import Recipe, fields_of, section_names

ENDINGS = {
    0: "done; for `fit`: every clause of the target is met",
    1: "a bug: please report it",
    cli.EXIT_MISSED: "the target was missed: the nearest model ships, the binding clause is named",
}
INTERNAL = {"EDITS", "FILTERS"}  # kinds of edits in a run folder, words of the report's template
RECIPE_HEAD = """# Recipe

Every choice of a training, typed. Write the fields you want to change into a YAML file and hand it
over with `--recipe`, or change one with `--set section.field=value`. Unknown keys and wrong types
are errors.
"""
VERBS_HEAD = """# Verbs

Every verb takes `--help`. Progress goes to stderr, results to stdout: one object with `--json`.
"""
PYTHON_HEAD = """# Python

`import trimtab as tt` offers these names and no others.
"""
PARTS_HEAD = """# Parts

A recipe names a part by its word here, or by `package.module:function` for one of your own.
"""


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table; `|` and line ends in cells are made harmless."""
    lines = [head, tuple("---" for _ in head), *rows]
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


# Recipe


def recipe_page() -> str:
    """Return every field of the recipe: type, range, default, meaning."""
    parts = [RECIPE_HEAD]
    for section in section_names():
        annotation = Recipe.model_fields[section].annotation
        rows = [
            (f"`{section}.{name}`", f"`{type_of(field)}`", range_of(field), f"`{field.default}`",
             field.description or "")
            for name, field in fields_of(section).items()
        ]  # fmt: skip
        head = ("field", "type", "range", "default", "meaning")
        parts.append(f"\n## {section}\n\n{inspect.getdoc(annotation)}\n\n{table(head, rows)}")
    return "".join(parts)


def type_of(field: FieldInfo) -> str:
    """Return a field's type in the words of YAML."""
    return " or ".join(dict.fromkeys(words_of(field.annotation)))


def words_of(annotation: Any) -> Iterator[str]:
    """Yield the words for one annotation: `number`, `text`, a literal value, a list."""
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        yield from map(str, inside)
    elif origin is typing.Annotated:
        yield from words_of(inside[0])
    elif origin is tuple:
        yield f"list of {' or '.join(words_of(inside[0]))}s"
    elif inside:
        for one in inside:
            yield from words_of(one)
    else:
        names = {float: "number", int: "whole number", str: "text", bool: "true or false"}
        yield names.get(annotation, str(annotation))


def range_of(field: FieldInfo) -> str:
    """Return a field's range, such as `>= 0, < 1`."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    found = [
        f"{sign} {getattr(limit, name):g}"
        for limit in field.metadata
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None
    ]
    return ", ".join(found)


# Verbs and names


def commands() -> dict[str, Any]:
    """Return every command of the command line by name."""
    return dict(vars(typer.main.get_command(cli.app))["commands"])


def verbs_page() -> str:
    """Return every verb of the command line with its arguments and options."""
    parts = [VERBS_HEAD]
    for name, command in commands().items():
        rows = [parameter_row(one) for one in command.params]
        head = ("argument or option", "default", "meaning")
        parts.append(f"\n## {name}\n\n{command.help}\n\n{table(head, rows) if rows else ''}")
    return "".join(parts)


def parameter_row(parameter: Any) -> tuple[str, str, str]:
    """Return one argument or option as a row."""
    label = ", ".join(parameter.opts)
    if parameter.param_type_name == "argument":
        label = (parameter.metavar or parameter.name).upper() + (
            "..." if parameter.nargs < 0 else ""
        )
    elif not parameter.is_flag:
        label += f" {parameter.opts[0].strip('-').upper()}"
    default = "required" if parameter.required else parameter.default
    shown = "" if default is None or default is False else str(default)
    return f"`{label}`", shown, parameter.help or ""


def python_page() -> str:
    """Return every public name with its signature and docstring."""
    parts = [PYTHON_HEAD]
    for name in sorted(trimtab.__all__, key=lambda word: (word[0].isupper(), word)):
        thing = getattr(trimtab, name)
        signature = f"({brief(thing)})" if inspect.isfunction(thing) else ""
        body = "\n".join(
            inspect.cleandoc(line) for line in (inspect.getdoc(thing) or "").split("\n")
        )
        kind = "class" if inspect.isclass(thing) else "def"
        parts.append(f"\n## {name}\n\n```text\n{kind} {name}{signature}\n```\n\n{body}\n")
    return "".join(parts)


def brief(function: Callable[..., Any]) -> str:
    """Return a signature's names and defaults; the docstring says what they are."""
    bare = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in inspect.signature(function).parameters.values()
    ]
    return str(inspect.Signature(bare))[1:-1]


# Parts


def registries() -> dict[str, dict[str, Any]]:
    """Return every registry that a recipe or a call may name, as `module.NAME` → its parts."""
    found = {}
    for module, path in modules_of(SOURCE).items():
        for node in registries_of(ast.parse(path.read_text(encoding="utf-8"))):
            if (name := name_of(node)) not in INTERNAL:
                found[f"{module}.{name}"] = dict(getattr(importlib.import_module(module), name))
    return found


def parts_page() -> str:
    """Return every registered part with the first line of what it says of itself."""
    parts = [PARTS_HEAD]
    for place, entries in registries().items():
        rows = [(f"`{name}`", first_line(part)) for name, part in entries.items()]
        module, _, name = place.rpartition(".")
        parts.append(f"\n## {name.lower().replace('_', ' ')}\n\nIn `{module}`.\n\n")
        parts.append(table(("name", "what it does"), rows))
    return "".join(parts)


def first_line(part: Any) -> str:
    """Return the first line of a part's docstring, or of the function inside a record."""
    if not (inspect.isfunction(part) or inspect.isclass(part)):
        part = next(value for value in vars(part).values() if callable(value))
    return (inspect.getdoc(part) or "").split("\n\n")[0]


# Exit codes


def exit_codes() -> dict[int, str]:
    """Return every exit code with its meaning, from the errors themselves."""
    found = dict(ENDINGS)
    for kind in vars(errors).values():
        if (
            inspect.isclass(kind)
            and issubclass(kind, errors.TrimtabError)
            and "exit_code" in vars(kind)
        ):
            found.setdefault(kind.exit_code, first_line(kind))
    return dict(sorted(found.items()))


def exit_codes_page() -> str:
    """Return the table of exit codes."""
    rows = [(str(code), meaning) for code, meaning in exit_codes().items()]
    return "# Exit codes\n\n" + table(("code", "meaning"), rows)


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site (a hook that mkdocs calls)."""
    from mkdocs.structure.files import File

    for path, write in PAGES.items():
        files.append(File.generated(config, path, content=write()))
    return files


PAGES: dict[str, Callable[[], str]] = {
    "reference/recipe.md": recipe_page,
    "reference/verbs.md": verbs_page,
    "reference/python.md": python_page,
    "reference/parts.md": parts_page,
    "reference/exit-codes.md": exit_codes_page,
}
