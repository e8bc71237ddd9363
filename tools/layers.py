"""Read which module imports which, and find what the house does not allow."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

FLOORS = (
    {"errors"},
    {"machine", "registry"},
    {"records"},
    {"models", "data", "diagnose", "report"},
    {"measure"},
    {"train", "export"},
    {"tune", "compress"},
    {"plan"},
    {"__init__", "__main__", "cli", "console", "serve"},
)  # from the ground up
DOORS = {
    ("cli", "__init__"),
    ("serve", "__init__"),
    ("__main__", "cli"),
    ("cli", "console"),
}  # ways in on one floor
SAFE_LOADERS = {"yaml.SafeLoader", "RecipeLoader"}  # the second is a subclass of the first
FORBIDDEN_NAMES = {"utils", "helpers", "common", "base", "manager"}


def modules_of(package: Path) -> dict[str, Path]:
    """Return every module of the folder `package` by its dotted name, `trimtab` itself included."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(tree: ast.Module, module: str) -> set[str]:
    """Return the dotted names `tree` imports anywhere, inside functions too.

    `from a import b` gives `a.b`; a relative import is resolved against `module`.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            found |= {f"{source}.{alias.name}" for alias in node.names}
    return found


def graph_of(package: Path) -> dict[str, set[str]]:
    """Return module → modules of the same package that it imports."""
    modules = modules_of(package)
    return {
        module: {
            target
            for name in imports_of(ast.parse(path.read_text("utf-8")), module)
            if (target := nearest(name, modules)) and target != module
        }
        for module, path in modules.items()
    }


def nearest(name: str, modules: Iterable[str]) -> str | None:
    """Return the module that the imported `name` is, or is a part of."""
    known = set(modules)
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name or None


def room_of(module: str) -> str:
    """Return the room of a module: `trimtab.train.loop` stands in `train`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def floor_of(room: str) -> int:
    """Return the floor of a room, 0 at the ground; raises KeyError for a room without one."""
    for number, rooms in enumerate(FLOORS):
        if room in rooms:
            return number
    raise KeyError(f"'{room}' stands on no floor: add it to FLOORS and to ARCHITECTURE.md")


def upward_imports(graph: Mapping[str, set[str]]) -> list[str]:
    """Return one sentence per import that does not go down to another floor."""
    return [
        f"{module} imports {target}"
        for module, targets in graph.items()
        for target in sorted(targets)
        if not goes_down(room_of(module), room_of(target))
    ]


def goes_down(room: str, target: str) -> bool:
    """Return whether `room` may import `target`."""
    if room == target or (room, target) in DOORS:
        return True
    return floor_of(target) < floor_of(room)


def cycle_in(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the modules of one import cycle, or nothing."""
    done: set[str] = set()

    def search(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph.get(module, ())):
            if found := search(target, [*trail, module]):
                return found
        done.add(module)
        return []

    return next((found for module in graph if (found := search(module, []))), [])


def registries_of(tree: ast.Module) -> list[ast.Assign | ast.AnnAssign]:
    """Return the registries: upper-case dict literals whose values name functions of the file."""
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    return [
        node
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.Dict)
        and name_of(node).isupper()
        and holds(node.value, functions)
    ]


def name_of(node: ast.Assign | ast.AnnAssign) -> str:
    """Return the name that an assignment binds, or an empty text."""
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    return target.id if isinstance(target, ast.Name) else ""


def holds(table: ast.Dict, functions: set[str]) -> bool:
    """Return whether a value of `table` names one of `functions`."""
    names = {
        node.id for value in table.values for node in ast.walk(value) if isinstance(node, ast.Name)
    }
    return bool(names & functions)


def not_at_the_foot(tree: ast.Module) -> list[str]:
    """Return the registries after which something other than a registry follows."""
    registries = registries_of(tree)
    foot = tree.body[len(tree.body) - len(registries) :]
    return [name_of(node) for node in registries if node not in foot]


def unsafe_calls(tree: ast.Module) -> Iterator[str]:
    """Yield every call that would run code, or leave its folder, for a hostile file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (fault := fault_of(node)):
            yield f"line {node.lineno}: {fault}"


def fault_of(call: ast.Call) -> str:
    """Return why `call` is unsafe, or an empty text."""
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in {"eval", "exec", "os.system", "os.popen"}:
        return f"{name}()"
    if last == "Markup" and not all(isinstance(one, ast.Constant) for one in call.args):
        return "Markup() of something other than a literal"
    if name.split(".")[0] in {"pickle", "cPickle", "dill", "joblib"} and last in {"load", "loads"}:
        return f"{name}() runs what the file says"
    if name == "torch.load" and given.get("weights_only") != "True":
        return "torch.load() without weights_only=True"
    if given.get("shell") == "True" or given.get("allow_pickle") == "True":
        return f"{name}() with shell or allow_pickle"
    if last == "extractall" and "filter" not in given:
        return f"{name}() without filter"
    if name == "yaml.load" and given.get("Loader") not in SAFE_LOADERS:
        return "yaml.load() without a safe loader"
    return ""
