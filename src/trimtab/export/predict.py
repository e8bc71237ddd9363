"""The verb `predict`: pictures to labels, with an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trimtab.errors import UnsafeError, UsageError
from trimtab.export.bundle import Artifact
from trimtab.export.predictor import Predictor, UnsafeArtifactError
from trimtab.records.run import Run


def predict(model: Run | Artifact | str | Path, *paths: str | Path) -> list[dict[str, Any]]:
    """Return one row per picture: path, label and probability, or path and error.

    `model` is an artifact folder, or a run that has one. Raises UsageError where there is none,
    UnsafeError where the model file is not the one the card describes.
    """
    folder = artifact_folder(model)
    try:
        return Predictor(folder).predict([str(path) for path in paths])
    except UnsafeArtifactError as error:
        raise UnsafeError(str(error), "export the run again") from error


def artifact_folder(model: Run | Artifact | str | Path) -> Path:
    """Return the artifact folder of a run, an artifact or a path to either."""
    path = model.path if isinstance(model, Run | Artifact) else Path(model)
    for folder in (path, path / "artifact"):
        if (folder / "card.json").is_file():
            return folder
    raise UsageError(f"{path} holds no artifact (no card.json)", "make one with `trimtab export`")
