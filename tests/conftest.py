"""Small real data for every test: scikit-learn's handwritten digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Keep the tests' decoded data out of the user's cache, and use one thread per worker."""
    import torch

    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setattr("trimtab.models.kernels.LEAST", 1)  # the tests' features are few
    patch.setattr("trimtab.models.fused.IN_FP32", (1, 2, 3, 4))  # and every activation is tested
    patch.setenv("TRIMTAB_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def own_output() -> Any:
    """Leave what a command line told of its output to the test that ran it."""
    from trimtab.machine import progress

    before = vars(progress.OUTPUT).copy()
    yield
    vars(progress.OUTPUT).update(before)


def write_digits(folder: Path, per_class: int) -> Path:
    """Write `per_class` scans of each digit as class folders of 8x8 PNGs."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for row in np.flatnonzero(digits.target == label)[:per_class]:
            pixels = (digits.images[row] * 255 / 16).round().astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{row:04d}.png")
    return folder


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unsplit class folders, 10 classes of 40 scans."""
    return write_digits(tmp_path_factory.mktemp("data") / "digits", 40)


@pytest.fixture(scope="session")
def tiny_recipe() -> Any:
    """A recipe that trains in about a second."""
    from trimtab.records.recipe import Recipe

    return Recipe().override(model__name="cnn_small", train__epochs=8, augment__flip=False,
                             train__precision="fp32")  # fmt: skip


@pytest.fixture(scope="session")
def tiny_dataset(digits_folder: Path, tiny_recipe: Any) -> Any:
    """The opened digits folder."""
    from trimtab.data.dataset import open_dataset

    return open_dataset(digits_folder, tiny_recipe)


@pytest.fixture(scope="session")
def tiny_run(tiny_dataset: Any, tiny_recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trained run on the digits."""
    from trimtab.train.run import train

    return train(tiny_dataset, recipe=tiny_recipe, out=tmp_path_factory.mktemp("runs") / "tiny")
