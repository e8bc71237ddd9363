"""The pages cannot lie: what they name exists, what they tell people to type is parsed and run."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import trimtab
from tools import reference

ROOT = Path(__file__).resolve().parent.parent
README, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
GUIDES = [
    README,
    *sorted((ROOT / "docs").glob("tutorial/*.md")),
    *sorted((ROOT / "docs").glob("how-to/*.md")),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LONG = re.compile(r"trimtab (fit|train|compare) (?!.*--dry-run)|tt\.(fit|train|compare)\(")

REGISTRIES = {
    "AUGMENTATIONS", "IMPORTANCES", "LOSSES", "METRICS", "MODELS", "OPTIMIZERS", "RANGES",
    "SCHEDULES",
}  # fmt: skip


@dataclass(frozen=True)
class Snippet:
    """One command, or one Python block, as it stands on a page."""

    language: str
    text: str


def snippets(page: Path) -> list[Snippet]:
    """Return the commands and Python blocks of a page, in order, without trailing comments."""
    found = []
    for language, body in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            found.append(Snippet("python", body))
        elif language == "bash":
            lines = [line.partition(" #")[0].strip() for line in body.splitlines()]
            found += [Snippet("bash", line) for line in lines if line and line[0] != "#"]
        else:
            assert language in {"text", "yaml"}, f"{page.name}: block '{language}' is not checked"
    return found


def commands(page: Path) -> list[list[str]]:
    return [shlex.split(one.text) for one in snippets(page) if one.language == "bash"]


def pages_with(language: str) -> list[Path]:
    return [page for page in GUIDES if any(one.language == language for one in snippets(page))]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def rows(page: Path, heading: str) -> list[list[str]]:
    """Return the body of the first table below `heading`, cells without backquotes."""
    section = page.read_text("utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


# Commands and snippets are ones that exist


@pytest.mark.parametrize("page", pages_with("bash"), ids=name)
def test_every_command_of_a_page_is_one_that_exists(page: Path) -> None:
    for words in commands(page):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        else:
            assert words[0] == "trimtab", f"{words} is checked by nothing"
            command = reference.commands()[words[1]]
            command.make_context(words[1], words[2:])  # raises for an unknown option


@pytest.mark.parametrize("page", pages_with("python"), ids=name)
def test_every_call_of_a_snippet_fits_the_signature(page: Path) -> None:
    for one in snippets(page):
        for call in calls_of(one.text) if one.language == "python" else []:
            verb = getattr(trimtab, ast.unparse(call.func).split(".")[1].split("(")[0])
            if inspect.isfunction(verb) and isinstance(call.func, ast.Attribute):
                words = {word.arg: None for word in call.keywords if word.arg}
                inspect.signature(verb).bind(*call.args, **words)


def calls_of(code: str) -> Iterator[ast.Call]:
    """Yield the calls of `tt.something(...)`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("tt."):
            yield node


def test_the_chinese_page_has_the_same_commands_in_the_same_order() -> None:
    assert snippets(CHINESE)
    assert [strip(one) for one in snippets(CHINESE)] == [strip(one) for one in snippets(README)]


def strip(snippet: Snippet) -> str:
    """Return a snippet without its comments, which are in the page's own language."""
    return ast.unparse(ast.parse(snippet.text)) if snippet.language == "python" else snippet.text


@pytest.mark.parametrize("page", [README, CHINESE], ids=name)
def test_both_pages_list_the_verbs_and_exit_codes_that_exist(page: Path) -> None:
    tables = [
        line.split("|")[1].strip()
        for line in page.read_text("utf-8").splitlines()
        if line[:1] == "|"
    ]
    verbs = {cell.strip("`") for cell in tables} & set(reference.commands())
    codes = {int(cell) for cell in tables if cell.isdigit()}
    assert verbs == set(reference.commands())
    assert codes == set(reference.exit_codes())


def test_both_pages_have_the_same_parts() -> None:
    shapes = [
        [(line.split(" ")[0], line.count("|")) for line in page.read_text("utf-8").splitlines()
         if line[:1] in {"#", "|", "-"}]
        for page in (README, CHINESE)
    ]  # fmt: skip
    assert [s for s in shapes[0] if s[0] != "-"] == [s for s in shapes[1] if s[0] != "-"]
    assert len(shapes[0]) == len(shapes[1])


@pytest.mark.parametrize("page", sorted({*GUIDES, *ROOT.glob("*.md")}), ids=name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = BLOCK.sub("", page.read_text("utf-8"))
    generated = {ROOT / "docs" / path for path in reference.PAGES}
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if not link.startswith(("http://", "https://")):
            target = Path(os.path.normpath(page.parent / link))
            assert target in generated or target.exists(), f"{name(page)}: {link}"


# The reference is complete


def test_every_recipe_field_is_described() -> None:
    text = reference.recipe_page()
    for section in reference.section_names():
        for field, facts in reference.fields_of(section).items():
            assert f"`{section}.{field}`" in text
            assert facts.description, f"{section}.{field} says nothing of itself"


def test_every_verb_and_option_is_described() -> None:
    text = reference.verbs_page()
    for verb, command in reference.commands().items():
        assert f"## {verb}\n\n{command.help}" in text
        for parameter in command.params:
            assert parameter.help, f"{verb} {parameter.name} says nothing of itself"


def test_every_public_name_is_described() -> None:
    text = reference.python_page()
    for public in trimtab.__all__:
        assert f"## {public}\n" in text
        assert inspect.getdoc(getattr(trimtab, public)), public


def test_every_registered_part_is_described() -> None:
    text = reference.parts_page()
    for place, parts in reference.registries().items():
        for word, part in parts.items():
            assert f"`{word}`" in text
            assert reference.first_line(part), f"{place} '{word}' says nothing of itself"


def test_every_registry_has_a_contract_test() -> None:
    found = {place.rpartition(".")[2] for place in reference.registries()}
    assert found == REGISTRIES
    for registry in REGISTRIES:
        assert (ROOT / "tests" / "contracts" / f"test_{registry.lower()}.py").exists(), registry


def test_every_generated_page_stands_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert [path for path in reference.PAGES if path not in text] == []


# The pages are run, as written, beside a folder of pictures


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in a folder with `photos/`, `labels.csv`, `new.jpg` and the recipes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    lines = ["path,label"]
    for label in (0, 1, 4):
        folder = tmp_path / "photos" / str(label)
        folder.mkdir(parents=True)
        for row in np.flatnonzero(digits.target == label)[:60]:
            image = Image.fromarray((digits.images[row] * 255 / 16).round().astype(np.uint8))
            image.save(folder / f"{row:04d}.png")
            lines.append(f"photos/{label}/{row:04d}.png,{label}")
    image.save(tmp_path / "new.jpg")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_page(page: Path) -> None:
    """Run every command and every Python block of a page, in order, in the current folder."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for one in snippets(page):
        if one.language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(one.text, name(page), "exec"), names)
        elif not one.text.startswith("make "):
            done = trimtab_of(shlex.split(one.text)[1:])
            assert done.returncode == 0, f"{one.text}\n{done.stdout}\n{done.stderr}"


def trimtab_of(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the command line as people do, in a process of its own."""
    line = [sys.executable, "-m", "trimtab", *words]
    return subprocess.run(line, capture_output=True, text=True, check=False)


QUICK = [page for page in GUIDES if not LONG.search(page.read_text("utf-8"))]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", QUICK, ids=name)
def test_a_short_page_runs_as_written(page: Path, desk: Path) -> None:
    run_page(page)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in GUIDES if page not in QUICK], ids=name)
def test_a_long_page_runs_as_written(page: Path, desk: Path) -> None:
    run_page(page)


def test_make_knows_what_demo_does() -> None:
    """`make -n demo` prints the very command of the README's first table without running it."""
    done = subprocess.run(
        ["make", "-n", "demo"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    target = '--target "accuracy>=0.97, p95<=1ms, size<=100KB" --budget 3m'
    assert target in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    line = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path),
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = re.compile(
        r"<(?:script|img|iframe|source)[^>]+src=\"(?:https?:)?//|<link[^>]+href=\"(?:https?:)?//"
    )
    sites = list(tmp_path.rglob("*.html"))
    assert len(sites) > 10
    assert [page for page in sites if loaded.search(page.read_text("utf-8"))] == []
