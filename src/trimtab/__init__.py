"""Train, compress and prove small networks: the smallest, fastest model that meets your target."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trimtab.machine.threads import calm_threads

if TYPE_CHECKING:
    from trimtab.compress.prune import prune
    from trimtab.compress.quantize import quantize
    from trimtab.data.check import check
    from trimtab.errors import TrimtabError
    from trimtab.export.bundle import Artifact, export
    from trimtab.export.predict import predict
    from trimtab.export.verify import verify
    from trimtab.machine.doctor import doctor
    from trimtab.models.build import load
    from trimtab.plan.compare import compare
    from trimtab.plan.fit import fit, plan
    from trimtab.records.recipe import Recipe
    from trimtab.records.run import Run, list_runs, open_run
    from trimtab.report.page import report
    from trimtab.train.adopt import adopt
    from trimtab.train.lr_find import LrFind, lr_find
    from trimtab.train.run import resume, train

__version__ = "0.1.0"

PUBLIC = {
    "fit": "plan.fit", "plan": "plan.fit", "check": "data.check", "compare": "plan.compare",
    "train": "train.run", "resume": "train.run", "adopt": "train.adopt",
    "lr_find": "train.lr_find", "LrFind": "train.lr_find", "prune": "compress.prune",
    "quantize": "compress.quantize",
    "export": "export.bundle", "verify": "export.verify", "predict": "export.predict",
    "report": "report.page", "doctor": "machine.doctor", "load": "models.build",
    "open_run": "records.run", "list_runs": "records.run", "Run": "records.run",
    "Artifact": "export.bundle", "Recipe": "records.recipe", "TrimtabError": "errors",
}  # fmt: skip

__all__ = [
    "Artifact", "LrFind", "Recipe", "Run", "TrimtabError", "adopt", "check", "compare", "doctor",
    "export", "fit", "list_runs", "load", "lr_find", "open_run", "plan", "predict", "prune",
    "quantize", "report", "resume", "train", "verify",
]  # fmt: skip


class PublicPage(ModuleType):
    """The package as a module on which a verb stays a verb when its room of that name is loaded.

    `trimtab.export` is the function; its room's files are imported by `from trimtab.export.onnx
    import …`.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """Leave a name of the public page alone when the import system binds a room to it."""
        if name not in PUBLIC or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = PublicPage
calm_threads()


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'trimtab' has no attribute '{name}'")
    value = getattr(import_module(f"trimtab.{PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
