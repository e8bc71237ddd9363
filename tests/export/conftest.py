"""One artifact for every test that only reads it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from trimtab.export.bundle import Artifact, export
from trimtab.records.run import Run


@pytest.fixture(scope="session")
def exported(tiny_run: Run, tiny_dataset: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy of the trained run with its artifact inside; not to be changed."""
    path = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(tiny_run.path, path)
    export(path, data=tiny_dataset)
    return Run(path)


@pytest.fixture(scope="session")
def artifact(exported: Run) -> Artifact:
    """The artifact of `exported`; not to be changed."""
    return Artifact(exported.path / "artifact")


@pytest.fixture
def own_artifact(artifact: Artifact, tmp_path: Path) -> Artifact:
    """A copy of the artifact that a test may spoil."""
    shutil.copytree(artifact.path, tmp_path / "artifact")
    return Artifact(tmp_path / "artifact")
