"""The house stands as it was drawn: floors, sizes, names, and nothing unsafe."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from tools import layers, size

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "trimtab"
GRAPH = layers.graph_of(PACKAGE)
MODULES = layers.modules_of(PACKAGE)
HEAVY = {
    "torch", "torchvision", "timm", "onnx", "onnxruntime", "onnxscript", "sklearn", "scipy",
    "pyarrow", "torch_pruning", "cv2", "matplotlib", "openvino", "nncf", "numpy", "PIL",
}  # fmt: skip
VERBS = {
    "adopt", "check", "compare", "doctor", "export", "fit", "list_runs", "load", "lr_find",
    "open_run", "plan", "predict", "prune", "quantize", "report", "resume", "train", "verify",
}  # fmt: skip
NOUNS = {"Artifact", "LrFind", "Recipe", "Run", "TrimtabError"}
STANDALONE = {"numpy", "PIL", "onnxruntime", "decode"}  # what an artifact's own files may need


def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def loaded_after(code: str, names: set[str]) -> set[str]:
    """Run `code` in a fresh interpreter; return which of `names` it has imported by then."""
    ending = "\nimport sys\nprint('LOADED', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code + ending], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    words = done.stdout.rpartition("LOADED")[2].split()
    return names.intersection(words)


# Floors


def test_imports_go_down_only() -> None:
    assert layers.upward_imports(GRAPH) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert layers.cycle_in(GRAPH) == []


def test_every_room_stands_on_a_floor() -> None:
    assert {layers.floor_of(layers.room_of(module)) for module in MODULES} <= set(range(9))


@pytest.mark.parametrize(
    ("module", "target", "fault"),
    [
        ("trimtab.data.split", "trimtab.train.loop", True),
        ("trimtab.data.split", "trimtab.models.image", True),
        ("trimtab.train.loop", "trimtab", True),
        ("trimtab.train.loop", "trimtab.data.split", False),
        ("trimtab.data.split", "trimtab.data.dataset", False),
        ("trimtab.cli", "trimtab", False),
    ],
)
def test_an_import_that_does_not_go_down_is_found(module: str, target: str, fault: bool) -> None:
    assert bool(layers.upward_imports({module: {target}})) is fault


def test_an_import_inside_a_function_counts() -> None:
    tree = ast.parse("def load():\n    from ..train import loop\n    import torch.nn as nn")
    assert layers.imports_of(tree, "trimtab.data.split") == {"trimtab.train.loop", "torch.nn"}


def test_a_circle_is_found() -> None:
    assert layers.cycle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == list("abca")
    assert layers.cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


# Heavy libraries


def test_the_package_and_its_help_import_nothing_heavy() -> None:
    code = """
import sys
from trimtab.cli import main
sys.argv = ["trimtab", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    assert loaded_after(code, HEAVY) == set()


def test_the_version_is_printed_without_anything_heavy() -> None:
    assert loaded_after("import trimtab\nprint(trimtab.__version__)", HEAVY) == set()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon", "radam"])
def test_a_training_does_not_load_the_compiler_it_does_not_use(
    optimizer: str, digits_folder: Path, tmp_path: Path
) -> None:
    code = f"""
import trimtab as tt
chosen = tt.Recipe().override(model__name="cnn_small", train__epochs=2, augment__flip=False,
                              train__optimizer={optimizer!r})
for words in ({{}}, {{"epochs": 3}}):
    if words:
        tt.resume({str(tmp_path / "r")!r}, **words)
    else:
        tt.train({str(digits_folder)!r}, recipe=chosen, out={str(tmp_path / "r")!r})
"""
    assert loaded_after(code, {"torch._dynamo", "torch._inductor"}) == set()


def test_what_reads_records_and_what_an_artifact_holds_import_no_torch() -> None:
    rooms = {"report", "diagnose", "records"}
    light = [module for module in MODULES if layers.room_of(module) in rooms]
    light += ["trimtab.export.predictor", "trimtab.export.bench", "trimtab.data.decode"]
    code = "\n".join(f"import {module}" for module in light)
    assert loaded_after(code, {"torch", "timm", "torchvision"}) == set()


@pytest.mark.parametrize("room", ["report", "diagnose"])
def test_a_reading_room_never_mentions_torch(room: str) -> None:
    for module in MODULES:
        if layers.room_of(module) == room:
            roots = {name.split(".")[0] for name in layers.imports_of(tree_of(module), module)}
            assert not roots & {"torch", "torchvision", "timm"}, module


@pytest.mark.parametrize(
    "module", ["trimtab.export.predictor", "trimtab.export.bench", "trimtab.data.decode"]
)
def test_files_copied_into_artifacts_need_only_numpy_pillow_and_onnxruntime(module: str) -> None:
    names = layers.imports_of(tree_of(module), module)
    roots = {name.split(".")[0] for name in names if not name.startswith("trimtab.data.decode")}
    assert roots <= STANDALONE | set(sys.stdlib_module_names)


# Names


def test_no_file_is_named_after_nothing() -> None:
    names = {path.stem for path in PACKAGE.rglob("*")}
    assert not names & layers.FORBIDDEN_NAMES


def test_the_public_page_exports_these_names_and_no_others() -> None:
    import trimtab

    assert set(trimtab.__all__) == VERBS | NOUNS
    for name in VERBS | NOUNS:
        assert getattr(trimtab, name).__doc__, f"{name} has no docstring"


def test_a_verb_takes_two_things_by_position_and_the_rest_by_name() -> None:
    import trimtab

    for verb in VERBS:
        kinds = [one.kind for one in inspect.signature(getattr(trimtab, verb)).parameters.values()]
        assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= 2, verb


def test_a_verb_stays_a_verb_after_its_room_is_imported() -> None:
    """`export`, `report` and `train` are rooms, too, and an import binds a room to that name."""
    code = """
import importlib, inspect, trimtab
for module in ("export.bundle", "report.page", "train.run"):
    importlib.import_module(f"trimtab.{module}")
wrong = [name for name in trimtab.__all__ if inspect.ismodule(getattr(trimtab, name))]
assert not wrong, wrong
"""
    loaded_after(code, set())


def test_the_public_page_hides_what_it_loads_later() -> None:
    import trimtab

    assert set(trimtab.__all__) <= set(dir(trimtab))
    with pytest.raises(AttributeError):
        trimtab.no_such_verb  # noqa: B018


def test_registries_stand_at_the_foot() -> None:
    for module in MODULES:
        assert layers.not_at_the_foot(tree_of(module)) == [], module


def test_a_registry_above_the_foot_is_found() -> None:
    body = "def minmax(values):\n    return values\n"
    table = "RANGES = {'minmax': minmax}\n"
    assert layers.not_at_the_foot(ast.parse(body + table)) == []
    assert layers.not_at_the_foot(ast.parse(body + table + body)) == ["RANGES"]
    assert layers.not_at_the_foot(ast.parse("UNITS = {'ms': 1.0}\n" + body)) == []


def test_a_file_opens_with_one_sentence_of_purpose() -> None:
    for module in MODULES:
        tree = tree_of(module)
        assert ast.get_docstring(tree) or not tree.body, f"{module} does not say what it is for"


# Sizes


def test_sizes_are_within_the_limits() -> None:
    assert size.faults(*size.measure()) == []


@pytest.mark.parametrize("folder", ["tests", "tools", "benchmarks", "examples"])
def test_no_file_beside_the_package_is_longer_than_500_lines(folder: str) -> None:
    _, files = size.measure(ROOT / folder)
    assert [file for file in files if file.lines > 500] == []


def test_a_long_deep_or_greedy_function_is_found() -> None:
    body = "\n".join(f"    x = {i}" for i in range(61))
    deep = "\n".join("    " * (i + 1) + "if x:" for i in range(5)) + "\n" + "    " * 6 + "y = 1"
    source = f"def long(self, x):\n{body}\n\ndef deep(x):\n{deep}\n\n"
    source += "def greedy(a, b, c, d, e, f, g, h, i):\n    return a\n"
    found = list(size.functions_of(source, "m.py"))
    assert [(f.lines, f.parameters, f.nesting) for f in found] == [(61, 1, 0), (6, 1, 5), (1, 9, 0)]
    assert len([fault for f in found for fault in size.faults_of(f)]) == 3


def test_docstrings_comments_and_blank_lines_are_no_code() -> None:
    source = '"""File."""\ndef f():\n    """Say.\n\n    More.\n    """\n\n    # why\n    return 1\n'
    assert [f.lines for f in size.functions_of(source, "m.py")] == [1]


def test_elif_is_no_deeper_than_if() -> None:
    source = "def f(x):\n    if x:\n        y = 1\n    elif x:\n        y = 2\n"
    assert [f.nesting for f in size.functions_of(source, "m.py")] == [1]


# Safety


@pytest.mark.parametrize("folder", ["src", "tools", "examples"])
def test_nothing_runs_what_a_file_says(folder: str) -> None:
    found = {
        path.relative_to(ROOT).as_posix(): faults
        for path in (ROOT / folder).rglob("*.py")
        if (faults := list(layers.unsafe_calls(ast.parse(path.read_text("utf-8")))))
    }
    assert found == {}


def test_templates_never_switch_escaping_off() -> None:
    templates = [path for path in PACKAGE.rglob("*") if path.suffix in {".html", ".j2", ".jinja"}]
    assert templates, "the report has a template"
    for path in templates:
        text = path.read_text("utf-8").replace(" ", "")
        assert "|safe" not in text, path
        assert "autoescapefalse" not in text, path


@pytest.mark.parametrize(
    "call",
    [
        "pickle.load(file)", "torch.load(path)", "torch.load(path, weights_only=False)",
        "eval(text)", "subprocess.run(line, shell=True)", "archive.extractall(folder)",
        "yaml.load(text, Loader=yaml.Loader)", "np.load(path, allow_pickle=True)",
        "joblib.load(path)", "os.system(line)", "Markup(text)",
    ],
)  # fmt: skip
def test_an_unsafe_call_is_found(call: str) -> None:
    assert list(layers.unsafe_calls(ast.parse(call)))


@pytest.mark.parametrize(
    "call",
    [
        "torch.load(path, weights_only=True)", "network.eval()", "subprocess.run([line])",
        "archive.extractall(folder, filter='data')", "yaml.load(text, Loader=RecipeLoader)",
        "np.load(path)", "json.load(file)", "Markup('<b>{}</b>').format(text)",
    ],
)  # fmt: skip
def test_a_safe_call_is_left_alone(call: str) -> None:
    assert not list(layers.unsafe_calls(ast.parse(call)))
