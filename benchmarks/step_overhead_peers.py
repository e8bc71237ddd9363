"""The loops of other packages for step_overhead.py, where they are installed.

They are no dependency: `pip install lightning transformers accelerate` puts them beside trimtab.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

Seconds = tuple[float, float]


def has(*packages: str) -> bool:
    """Return whether all of `packages` are installed."""
    return all(importlib.util.find_spec(package) is not None for package in packages)


class Watch:
    """Start and stop of a training, on the wall and of the processor."""

    def __init__(self) -> None:
        self.marks: list[Seconds] = []

    def mark(self) -> None:
        """Note the time."""
        self.marks.append((time.perf_counter(), time.process_time()))

    @property
    def seconds(self) -> Seconds:
        """What went by between the first and the last mark."""
        first, last = self.marks[0], self.marks[-1]
        return last[0] - first[0], last[1] - first[1]


def lightning(
    network: nn.Module, groups: list[dict[str, Any]], pixels: Tensor, targets: Tensor, rate: float,
    smoothing: float, batch: int,
) -> Seconds:  # fmt: skip
    """Train one epoch by Lightning's Trainer with its defaults: metrics, progress, checkpoints."""
    import lightning as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    watch, steps = Watch(), -(-len(targets) // batch)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: Any, index: int) -> Tensor:
            outputs = self.network(batch[0])
            loss = functional.cross_entropy(outputs, batch[1], label_smoothing=smoothing)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        def on_train_batch_start(self, *given: Any) -> None:
            if not watch.marks:
                watch.mark()

        def on_train_end(self) -> None:
            watch.mark()

    loader = DataLoader(TensorDataset(pixels, targets), batch, shuffle=True)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=folder,
                             enable_model_summary=False)  # fmt: skip
        trainer.fit(Module(), loader)
    return watch.seconds


def hugging_face(
    network: nn.Module, groups: list[dict[str, Any]], pixels: Tensor, targets: Tensor, rate: float,
    smoothing: float, batch: int,
) -> Seconds:  # fmt: skip
    """Train one epoch by transformers' Trainer with its defaults: log, progress, checkpoints."""
    import transformers

    watch, steps = Watch(), -(-len(targets) // batch)

    class Marks(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *given: Any, **more: Any) -> None:
            if not watch.marks:
                watch.mark()

        def on_train_end(self, *given: Any, **more: Any) -> None:
            watch.mark()

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
            outputs = self.network(pixels)
            loss = functional.cross_entropy(outputs, labels, label_smoothing=smoothing)
            return {"loss": loss, "logits": outputs}

    rows = [{"pixels": x, "labels": y} for x, y in zip(pixels, targets, strict=True)]
    optimizer = torch.optim.AdamW(groups, lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, num_train_epochs=1, per_device_train_batch_size=batch, use_cpu=True,
            report_to=[],
        )  # fmt: skip
        trainer = transformers.Trainer(
            Wrapped(), arguments, train_dataset=rows, optimizers=(optimizer, schedule),
            callbacks=[Marks()],
        )  # fmt: skip
        trainer.train()
    return watch.seconds
