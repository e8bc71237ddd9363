"""Measure how long the functions and files of the package are, how many parameters, how nested."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "trimtab"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BLOCKS = (ast.For, ast.AsyncFor, ast.While, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.Match)
SILENT = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER, tokenize.ENCODING,
}  # fmt: skip
LIMITS = {"median": 7, "ninety": 22, "longest": 60, "loop": 80, "file": 350, "parameters": 8,
          "nesting": 4}  # fmt: skip
LOOP = "train/loop.py"  # the page where forward, loss, backward, step and log stand in order
COMMANDS = "cli.py"  # a command's parameters are its options, which people never give by position


@dataclass(frozen=True)
class Function:
    """One function: where it stands, its code lines, parameters and deepest nesting of blocks."""

    place: str
    lines: int
    parameters: int
    nesting: int


@dataclass(frozen=True)
class File:
    """One file: its path below the package and its lines, blank ones and comments included."""

    place: str
    lines: int


def code_lines(source: str) -> set[int]:
    """Return the numbers of the lines that hold code: no blanks, comments or docstrings."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {
        line
        for token in tokens
        if token.type not in SILENT
        for line in range(token.start[0], token.end[0] + 1)
    }
    return lines - docstring_lines(ast.parse(source))


def docstring_lines(tree: ast.Module) -> set[int]:
    """Return the numbers of the lines that belong to docstrings."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return found


def functions_of(source: str, place: str) -> Iterator[Function]:
    """Yield every function and method of `source`; its signature does not count as code."""
    lines = code_lines(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, FUNCTIONS):
            body = range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1)
            yield Function(
                f"{place}:{node.lineno} {node.name}",
                len(lines.intersection(body)),
                parameter_count(node.args),
                max((depth(child) for child in node.body), default=0),
            )


def parameter_count(arguments: ast.arguments) -> int:
    """Return how many parameters a caller sees: `self` and `cls` do not count."""
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    stars = [star for star in (arguments.vararg, arguments.kwarg) if star]
    return len(stars) + sum(argument.arg not in {"self", "cls"} for argument in named)


def depth(node: ast.AST) -> int:
    """Return how many blocks stand inside each other from `node` down; `elif` is no new level."""
    if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
        return 0  # measured on its own
    own = int(isinstance(node, BLOCKS))
    elifs = node.orelse if isinstance(node, ast.If) and is_elif(node) else []
    inner = [depth(child) for child in ast.iter_child_nodes(node) if child not in elifs]
    chained = [depth(child) for child in elifs]
    return max([own + max(inner, default=0), *chained])


def is_elif(node: ast.If) -> bool:
    """Return whether the `else` of `node` is nothing but one more `if`."""
    return len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If)


def measure(folder: Path = SOURCE) -> tuple[list[Function], list[File]]:
    """Return all functions and files below `folder`."""
    functions: list[Function] = []
    files: list[File] = []
    for path in sorted(folder.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        place = path.relative_to(folder).as_posix()
        functions += functions_of(source, place)
        files.append(File(place, source.count("\n")))
    return functions, files


def spread(functions: list[Function]) -> tuple[float, float]:
    """Return the median and the 90 % quantile of the functions' lengths in code lines."""
    lengths = [function.lines for function in functions]
    if len(lengths) < 2:
        return (float(sum(lengths)),) * 2
    return median(lengths), quantiles(lengths, n=10, method="inclusive")[-1]


def faults(functions: list[Function], files: list[File]) -> list[str]:
    """Return one sentence per broken limit."""
    middle, ninety = spread(functions)
    found = []
    if middle > LIMITS["median"]:
        found.append(f"the median function has {middle:g} lines, limit {LIMITS['median']}")
    if ninety > LIMITS["ninety"]:
        found.append(
            f"a tenth of the functions is above {ninety:g} lines, limit {LIMITS['ninety']}"
        )
    for function in functions:
        found += faults_of(function)
    return found + [
        f"{file.place} has {file.lines} lines, limit {LIMITS['file']}"
        for file in files
        if file.lines > LIMITS["file"]
    ]


def faults_of(function: Function) -> list[str]:
    """Return one sentence per limit that `function` breaks."""
    longest = LIMITS["loop" if function.place.startswith(LOOP) else "longest"]
    checks = [
        (function.lines, longest, "lines"),
        (function.nesting, LIMITS["nesting"], "levels of blocks"),
    ]
    if not function.place.startswith(COMMANDS):
        checks.append((function.parameters, LIMITS["parameters"], "parameters"))
    return [f"{function.place} has {got} {what}, limit {limit}"
            for got, limit, what in checks if got > limit]  # fmt: skip


def main() -> int:
    """Print the sizes and the broken limits; return 1 when there are any."""
    functions, files = measure()
    middle, ninety = spread(functions)
    longest = sorted(functions, key=lambda function: -function.lines)[:5]
    largest = sorted(files, key=lambda file: -file.lines)[:5]
    print(f"{len(functions)} functions in {len(files)} files, {sum(f.lines for f in files)} lines")
    print(f"code lines of a function: median {middle:g}, 90 % at most {ninety:g}")
    print("longest functions: " + ", ".join(f"{f.place} ({f.lines})" for f in longest))
    print("longest files: " + ", ".join(f"{f.place} ({f.lines})" for f in largest))
    print(f"most parameters: {max(f.parameters for f in functions)}, "
          f"deepest nesting: {max(f.nesting for f in functions)}")  # fmt: skip
    broken = faults(functions, files)
    print("\n".join(f"over the limit: {fault}" for fault in broken) or "within all limits")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
