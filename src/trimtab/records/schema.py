"""What the data look like, as far as a network needs to know."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Schema(BaseModel):
    """Describe one image-classification data set: input shape and class names.

    `mean` and `std` are per channel in pixel units [0, 255], measured on the train split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: Literal["image"] = "image"
    classes: tuple[str, ...]
    channels: int = Field(ge=1, le=4)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one sample as a network sees it: (channels, height, width)."""
        return (self.channels, self.height, self.width)
