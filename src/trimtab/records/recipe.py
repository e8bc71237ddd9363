"""The recipe: every choice of a training, typed, with meaning, unit, range and default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from trimtab.errors import RecipeError
from trimtab.registry import did_you_mean

VERSION = 1
MAX_BYTES = 1_000_000
MOST = 2**31 - 1
LONGEST = 60  # characters of a faulty value that a message repeats
Auto = Literal["auto"]


def not_bool(value: Any) -> Any:
    """Refuse YAML's `yes`, `no`, `on`, `off` where a number or a word is wanted."""
    if isinstance(value, bool):
        raise ValueError("a number or a word in quotes, not a yes/no value")
    return value


Number = Annotated[float, BeforeValidator(not_bool), Field(allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(not_bool), Field(le=MOST)]


class Section(BaseModel):
    """One frozen section; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSection(Section):
    """How pictures are read, split and augmented."""

    image_size: Auto | Annotated[Count, Field(ge=4, le=1024)] = Field(
        "auto", description="side of the square network input in pixels, 4 to 1024; auto: the "
        "median short side of the pictures, at most 128")  # fmt: skip
    channels: Auto | Literal[1, 3] = Field(
        "auto", description="1 grey, 3 colour; auto: 1 when every picture is grey"
    )
    valid_fraction: Number = Field(
        0.15, gt=0, lt=0.5, description="share of each class that becomes the valid split"
    )
    test_fraction: Number = Field(
        0.15, ge=0, lt=0.5, description="share of each class that becomes the test split"
    )
    max_bad_fraction: Number = Field(
        0.01, ge=0, le=1, description="share of undecodable files above which the data are refused"
    )
    shift: Number = Field(
        0.125, ge=0, le=0.5, description="largest random shift, as a fraction of the side "
        "(0.125 is 4 pixels of 32: He et al. 2015, section 4.2)")  # fmt: skip
    flip: Auto | bool = Field(
        "auto", description="random horizontal flip; auto: only where a trial shows that mirrored "
        "pictures are recognised as well")  # fmt: skip


class ModelSection(Section):
    """Which network."""

    name: str = Field(
        "auto", description="a registered model, any timm model, or package.module:function; "
        "auto: chosen by measurement")  # fmt: skip
    width: Number = Field(
        1.0, gt=0, le=8, description="factor on the channels of trimtab's own networks"
    )
    dropout: Number = Field(0.0, ge=0, lt=1, description="dropout in front of the last layer")


class TrainSection(Section):
    """How the weights are found."""

    epochs: Count = Field(60, ge=1, description="passes over the train split at the most")
    batch_size: Auto | Annotated[Count, Field(ge=2)] = Field(
        "auto",
        description="samples per step; auto: 32 to 128, so that an epoch has 40 steps or more",
    )
    optimizer: str = Field("adamw", description="adamw, sgd, or package.module:function")
    learning_rate: Auto | Annotated[Number, Field(gt=0)] = Field(
        "auto", description="peak learning rate; auto: 3e-3 for adamw, 0.1 for sgd"
    )
    momentum: Number = Field(
        0.9, ge=0, lt=1, description="momentum of sgd (Nesterov), beta1 of adamw"
    )
    schedule: str = Field(
        "one_cycle", description="one_cycle, constant, or package.module:function"
    )
    loss: str = Field("cross_entropy", description="cross_entropy, or package.module:function")
    patience: Count = Field(
        20, ge=1, description="epochs without a better valid accuracy after which training stops"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: the faster of fp32 and bf16 by a short probe"
    )


class RegularizeSection(Section):
    """What keeps the network from learning the train split by heart."""

    weight_decay: Number = Field(
        0.05, ge=0, description="weight decay, not on norms and biases; decoupled in adamw"
    )
    label_smoothing: Number = Field(
        0.1, ge=0, lt=1, description="share of the label spread over all classes (Szegedy 2016)"
    )


class CompressSection(Section):
    """Which edits are tried, and what they may cost."""

    prune_keep: tuple[Annotated[Number, Field(gt=0, le=1)], ...] = Field(
        (0.7, 0.5), description="shares of channels kept, one pruned candidate each; () for none"
    )
    importance: str = Field("magnitude", description="magnitude, or package.module:function")
    finetune_fraction: Number = Field(
        0.3, gt=0, le=1, description="epochs of fine-tuning as a share of the parent's epochs"
    )
    quantize: Literal["int8", "none"] = Field("int8", description="int8, or none")
    ranges: str = Field(
        "mse", description="how activation ranges are set: minmax, percentile or mse"
    )
    calibration_samples: Count = Field(
        512, ge=1, description="train samples that set the activation ranges"
    )
    allowed_drop: Number = Field(
        0.01, ge=0, le=1, description="accuracy an edit may cost on valid before it is not kept; "
        "more where its parent has more to spare above the target")  # fmt: skip


class ExportSection(Section):
    """What the artifact must prove."""

    max_logit_difference: Number = Field(
        1e-3, gt=0, description="largest difference of logits between the run and its fp32 file, "
        "relative to the largest logit")  # fmt: skip
    max_flip_fraction: Number = Field(
        0.05, ge=0, le=1, description="largest share of decisions an int8 file may change"
    )


class Recipe(Section):
    """All choices of a training."""

    version: Literal[1] = 1
    data: DataSection = DataSection()
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

    def to_yaml(self) -> str:
        """Return all choices, defaults written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


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
