"""The wheel holds what it needs and works away from the checkout; the set-up files agree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import trimtab
from tools.layers import imports_of, modules_of

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NAMES = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn"}  # imported as, installed as


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with the installed hatchling, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(line, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("trimtab-*.whl"))


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    package = ROOT / "src" / "trimtab"
    wanted = {
        f"trimtab/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == wanted
    assert "trimtab/py.typed" in held
    assert [
        name
        for name in held
        if name.startswith("trimtab/report/") and name.endswith((".html", ".j2"))
    ]


def test_the_wheel_carries_licence_version_and_command(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = {name.rpartition("/")[2]: name for name in archive.namelist() if ".dist-info/" in name}
    metadata = archive.read(info["METADATA"]).decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert f"Version: {trimtab.__version__}\n" in metadata
    assert "Apache License" in archive.read(info["LICENSE"]).decode()
    assert "trimtab = trimtab.cli:command" in archive.read(info["entry_points.txt"]).decode()


def test_the_wheel_runs_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import trimtab
assert trimtab.__file__.startswith(sys.argv[1]), trimtab.__file__
sys.argv = ["trimtab", "doctor", "--json"]
from trimtab.cli import main
main()
"""
    line = [sys.executable, "-c", code]
    done = subprocess.run(
        [*line, str(tmp_path / "site")], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert '"advice"' in done.stdout


def test_every_import_is_a_declared_dependency() -> None:
    roots = {
        name.split(".")[0]
        for module, path in modules_of(ROOT / "src" / "trimtab").items()
        for name in imports_of(ast.parse(path.read_text("utf-8")), module)
    }
    foreign = roots - set(sys.stdlib_module_names) - {"trimtab", "decode"}
    needed = {NAMES.get(name, name).replace("_", "-") for name in foreign}
    extras = PROJECT["optional-dependencies"]
    assert needed <= names_of(PROJECT["dependencies"]) | names_of(extras["openvino"])


def test_every_dependency_has_a_lower_bound_that_the_tested_version_meets() -> None:
    tested = dict(line.split("==") for line in pins())
    extras = PROJECT["optional-dependencies"].values()
    declared = [*PROJECT["dependencies"], *(package for extra in extras for package in extra)]
    for requirement in declared:
        package, bound = re.fullmatch(r"([\w-]+)>=([\d.]+).*", requirement).groups()  # type: ignore[union-attr]
        assert numbers(tested[package.lower()]) >= numbers(bound), requirement


def test_the_constraints_are_names_and_versions_only() -> None:
    assert len(pins()) > 50
    assert [line for line in pins() if not re.fullmatch(r"[a-z0-9.-]+==[0-9][\w.]*", line)] == []


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def names_of(requirements: list[str]) -> set[str]:
    return {re.split(r"[><=\[; ]", requirement)[0].lower() for requirement in requirements}


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


# The makefile


def test_make_alone_lists_every_target() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "lint", "size", "docs", "bench", "clean"):
        assert f"make {target} " in done.stdout


def test_an_unfit_python_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    script = tmp_path / "tools" / "install.sh"
    script.write_text((ROOT / "tools" / "install.sh").read_text("utf-8"), encoding="utf-8")
    done = subprocess.run(
        ["sh", str(script)], env={"PATH": "/usr/bin:/bin", "PYTHON": "/bin/false"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Python 3.11 or newer" in done.stderr
    assert "hint:" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_the_demo_writes_every_scan_as_a_picture(tmp_path: Path) -> None:
    from PIL import Image

    from examples.digits import write_digits

    assert write_digits(tmp_path) == 1797
    pictures = sorted(tmp_path.glob("*/*.png"))
    assert len(pictures) == 1797
    assert {path.parent.name for path in pictures} == set("0123456789")
    with Image.open(pictures[0]) as image:
        assert (image.size, image.mode, image.getextrema()) == ((8, 8), "L", (0, 239))
