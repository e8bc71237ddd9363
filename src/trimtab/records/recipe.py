"""The recipe: every choice of a training, typed, with meaning, unit, range and default."""

from __future__ import annotations

import re
from pathlib import Path, PurePath
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from trimtab.errors import RecipeError
from trimtab.records.sections import (
    AugmentSection,
    CompressSection,
    DataSection,
    ExportSection,
    ModelSection,
    RegularizeSection,
    Section,
    TrainSection,
)
from trimtab.registry import did_you_mean

VERSION = 1
MAX_BYTES = 1_000_000
LONGEST = 60  # characters of a faulty value that a message repeats


class Recipe(Section):
    """All choices of a training."""

    version: Literal[1] = 1
    data: DataSection = DataSection()
    augment: AugmentSection = AugmentSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()
    regularize: RegularizeSection = RegularizeSection()
    compress: CompressSection = CompressSection()
    export: ExportSection = ExportSection()

    def override(self, **changes: Any) -> Recipe:
        """Return a copy with `section__field=value` changes, checked like a file.

        Example: `recipe.override(train__epochs=5)`.
        """
        values = self.model_dump(mode="json")
        for key, value in changes.items():
            section, _, field = key.partition("__")
            values.setdefault(section, {})[field] = value
        return validate(values, "override")

    def portable(self) -> Recipe:
        """Return a copy that names no folder of this machine, only the file in it."""
        path = PurePath(self.model.pretrained)
        if not (path.is_absolute() or self.model.pretrained.startswith("~")):
            return self
        return self.override(model__pretrained=path.name or ".")

    def to_yaml(self) -> str:
        """Return all choices, defaults written out, without folders of this machine."""
        values = self.portable().model_dump(mode="json")
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


class RecipeLoader(yaml.SafeLoader):
    """Safe YAML without aliases and duplicate keys, where `3e-4` is a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse aliases, which can make a small file grow without bound."""
        if self.check_event(yaml.AliasEvent):
            raise RecipeError("a recipe may not use YAML aliases (*)", "write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for i, key in enumerate(keys) if key in keys[:i]]
        if twice:
            line = node.start_mark.line + 1
            raise RecipeError(f"key '{twice[0]}' stands twice (from line {line})", "keep one")
        return super().construct_mapping(node, deep)


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """Read YAML with the traps closed; raises RecipeError."""
    try:
        return yaml.load(text, Loader=RecipeLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        first = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"{where} is no readable YAML: {first}", "see recipes/ for examples"
        ) from error


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe file; raises RecipeError."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path} is larger than {MAX_BYTES:,} bytes", "is it a recipe?")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"cannot read the recipe {path}: {error.strerror}", "check the path"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text", "is it a recipe?") from error
    return validate(parse_yaml(text, str(path)) or {}, str(path))


def as_recipe(recipe: Recipe | str | Path | None) -> Recipe:
    """Return a recipe given as one, as a file, or not at all."""
    if recipe is None:
        return Recipe()
    return recipe if isinstance(recipe, Recipe) else read_recipe(recipe)


def apply_settings(recipe: Recipe, settings: list[str]) -> Recipe:
    """Apply `section.field=value` settings of the command line; values are read as YAML."""
    values = recipe.model_dump(mode="json")
    for setting in settings:
        key, equals, text = setting.partition("=")
        section, dot, field = key.strip().partition(".")
        if not equals or not dot:
            raise RecipeError(
                f"cannot read --set '{setting}'", "write it like --set train.epochs=10"
            )
        values.setdefault(section, {})
        if not isinstance(values[section], dict):
            raise RecipeError(f"'{section}' is no section (--set {setting})",
                              did_you_mean(section, section_names()))  # fmt: skip
        values[section][field] = parse_yaml(text, f"--set {key}")
    return validate(values, "--set")


def section_names() -> list[str]:
    """Return the names of the recipe's sections."""
    return [name for name in Recipe.model_fields if name != "version"]


def validate(values: Any, where: str) -> Recipe:
    """Turn plain values into a Recipe; raises RecipeError with the first fault and a hint."""
    if not isinstance(values, dict):
        raise RecipeError(f"{where}: a recipe is sections of fields, got {type(values).__name__}",
                          "start with 'train:' and indent fields below it")  # fmt: skip
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise explain(error, where) from error


def explain(error: ValidationError, where: str) -> RecipeError:
    """Say the first fault of a recipe in the user's words."""
    faults = error.errors(include_url=False)
    fault = faults[0]
    path = [str(part) for part in fault["loc"]]
    key = ".".join(path[:2])
    if fault["type"] == "extra_forbidden":
        known = section_names() if len(path) == 1 else list(fields_of(path[0]))
        return RecipeError(f"{where}: unknown key '{key}'", did_you_mean(path[-1], known))
    hint = "a section holds fields, one per line"
    if len(path) > 1:
        hint = f"{key}: {fields_of(path[0])[path[1]].description}"
    same = [each for each in faults if each["loc"][:2] == fault["loc"][:2]]
    wanted = " or ".join(plain_message(each["msg"]) for each in same)
    return RecipeError(f"{where}: {key}: wanted {wanted}, got {shortened(fault['input'])}", hint)


def plain_message(text: str) -> str:
    """Return a message of pydantic without its opening words."""
    return text.removeprefix("Input should be ").removeprefix("Value error, ")


def shortened(value: Any) -> str:
    """Return a value as it stands in the recipe, cut to one line of a terminal."""
    text = repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def fields_of(section: str) -> dict[str, Any]:
    """Return the fields of a section by name."""
    annotation = Recipe.model_fields[section].annotation
    return dict(getattr(annotation, "model_fields", {}))
