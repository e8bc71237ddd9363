"""Recipes: typed, with the YAML traps closed."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trimtab.errors import RecipeError
from trimtab.records.recipe import Recipe, apply_settings, fields_of, read_recipe, section_names

ROOT = Path(__file__).parents[2]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_written_out_read_back_equal(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, Recipe().to_yaml())) == Recipe()


def test_3e_4_is_a_number(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, "train:\n  learning_rate: 3e-4\n"))
    assert recipe.train.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train:\n  epoch: 3\n", "did you mean 'epochs'"),
        ("trian:\n  epochs: 3\n", "did you mean 'train'"),
        ("train:\n  epochs: many\n", "train.epochs"),
        ("train:\n  epochs: yes\n", "yes/no"),
        ("train:\n  epochs: 3\n  epochs: 4\n", "stands twice"),
        ("train: 3\n", "train"),
        ("- 1\n", "sections"),
        ("train: [\n", "no readable YAML"),
        ("a: &x 1\nb: *x\n", "aliases"),
        ("train: !!python/object/apply:os.system ['echo hi']\n", "no readable YAML"),
        ("model:\n  name: no\n", "model.name"),
        ("version: 2\n", "version"),
        ("regularize:\n  label_smoothing: 1.5\n", "label_smoothing"),
        ("data:\n  image_size: 2\n", "image_size"),
        ("data:\n  channels: 2\n", "wanted 'auto' or 1 or 3, got 2"),
        ("train:\n  learning_rate: -1\n", "wanted 'auto' or greater than 0, got -1"),
        ("train:\n  learning_rate: .nan\n", "finite"),
        ("train:\n  batch_size: 0\n", "equal to 2"),
        ("train:\n  epochs: 99999999999\n", "less than"),
        ("compress:\n  prune_keep: [2]\n", "equal to 1, got 2"),
        ("compress:\n  prune_keep: [0]\n", "greater than 0"),
        ("? [a, b]\n: 1\n", "hint"),
    ],
)
def test_faulty_recipe_says_what_and_hints(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(write(tmp_path, text))
    assert says in str(caught.value)
    assert caught.value.exit_code == 2


def test_missing_binary_and_huge_recipes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="UTF-8"):
        read_recipe(tmp_path / "b.yaml")
    (tmp_path / "h.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(RecipeError, match="larger"):
        read_recipe(tmp_path / "h.yaml")


def test_settings_of_the_command_line_are_typed() -> None:
    settings = ["train.epochs=3", "train.learning_rate=3e-4", "compress.prune_keep=[0.5]"]
    recipe = apply_settings(Recipe(), [*settings, "augment.flip=true"])
    assert (recipe.train.epochs, recipe.train.learning_rate) == (3, 3e-4)
    assert (recipe.compress.prune_keep, recipe.augment.flip) == ((0.5,), True)


@pytest.mark.parametrize(
    "setting", ["train.epochs", "epochs=3", "train.epoch=3", "version.x=1", "x.y=1"]
)
def test_unreadable_settings_are_refused(setting: str) -> None:
    with pytest.raises(RecipeError):
        apply_settings(Recipe(), [setting])


def test_every_field_is_documented() -> None:
    missing = [f"{s}.{name}" for s in section_names() for name, field in fields_of(s).items()
               if not field.description]  # fmt: skip
    assert missing == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/*.yaml")), ids=lambda p: p.name)
def test_every_shipped_recipe_is_read(path: Path) -> None:
    assert read_recipe(path).version == 1


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["train", "data", "epochs", "flip", "x"]), inner, max_size=3),
    max_leaves=8,
))  # fmt: skip
def test_any_yaml_is_read_or_refused_with_our_own_error(value: object) -> None:
    from trimtab.records.recipe import parse_yaml, validate

    with suppress(RecipeError):
        assert validate(parse_yaml(yaml.safe_dump(value), "test"), "test").version == 1


@pytest.mark.parametrize(
    ("given", "kept"),
    [("/home/me/w.npz", "w.npz"), ("~/w.npz", "w.npz"), ("nets/w.npz", "nets/w.npz"), (".", "."),
     ("/", "."), ("cache:a1_in1k", "cache:a1_in1k"), ("none", "none")],
)  # fmt: skip
def test_what_is_written_down_names_no_folder_of_this_machine(given: str, kept: str) -> None:
    recipe = Recipe().override(model__pretrained=given)
    assert recipe.portable().model.pretrained == kept
    assert recipe.model.pretrained == given
    assert f"pretrained: {kept}\n" in recipe.to_yaml()
