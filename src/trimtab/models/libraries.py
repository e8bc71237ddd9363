"""Networks of timm and torchvision by their names there, built with fresh weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from trimtab.errors import UsageError
from trimtab.records.schema import Schema

TIMM, TORCHVISION = "timm", "torchvision"
PARTS = {  # heads beside the main one, which no loss of ours would train
    "googlenet": {"aux_logits": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "init_weights": True},
}
BESIDE = ("AuxLogits.", "aux1.", "aux2.")  # the names of those heads
OLD_NAME = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")


def library_of(name: str) -> tuple[str, str] | None:
    """Return the library of a model and its name there, or None where neither knows it.

    `timm.NAME` and `torchvision.NAME` say which; else timm is asked first, then torchvision.
    """
    library, _, rest = name.partition(".")
    if library in (TIMM, TORCHVISION):
        return (library, rest) if rest in names_of(library) else None
    return next(((each, name) for each in (TIMM, TORCHVISION) if name in names_of(each)), None)


def names_of(library: str) -> list[str]:
    """Return the names of all image classifiers of a library, without tags of weights."""
    if library == TIMM:
        import timm  # here, since it takes seconds and trimtab's own nets do without

        return list(timm.list_models())
    from torchvision import models

    return list(models.list_models(module=models))


def as_built(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return published tensors of the model `name` under the names of the network built here.

    Files of densenets are from a time when `norm1` was `norm.1`; torchvision renames them, too.
    Heads beside the main one are left out.
    """
    beside = BESIDE if name.rpartition(".")[2] in PARTS else ()
    return {OLD_NAME.sub(r"\1", key): value for key, value in tensors.items()
            if not key.startswith(beside)}  # fmt: skip


def library_model(
    library: str, name: str, schema: Schema, *, width: float = 1.0, dropout: float = 0.0,
    stochastic_depth: float = 0.0,
) -> nn.Module:  # fmt: skip
    """Build a model of a library with fresh weights; nothing is fetched.

    Raises UsageError for a width other than 1 and for a model that cannot be built for the data.
    """
    if width != 1.0:
        raise UsageError(
            f"model.width is for trimtab's own networks; {name} is {library}'s, got {width:g}",
            "leave model.width at 1, or take one of trimtab's own, such as cnn_medium",
        )
    build = timm_model if library == TIMM else torchvision_model
    try:
        return build(name, schema, dropout=dropout, stochastic_depth=stochastic_depth)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UsageError(f"{library} cannot build {name} for this data: {error}",
                         "choose another model, or another data.image_size") from error  # fmt: skip


def timm_model(
    name: str, schema: Schema, *, dropout: float = 0.0, stochastic_depth: float = 0.0
) -> nn.Module:
    """Build a model of timm for the data's channels, classes and, where it is fixed, size."""
    import timm

    settings: dict[str, Any] = {"drop_rate": dropout} if dropout else {}
    if stochastic_depth:
        settings["drop_path_rate"] = stochastic_depth
    if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False):
        settings["img_size"] = (schema.height, schema.width)
    body = timm.create_model(name, pretrained=False, num_classes=len(schema.classes),
                             in_chans=schema.channels, **settings)  # fmt: skip
    assert isinstance(body, nn.Module)
    return body


def torchvision_model(
    name: str, schema: Schema, *, dropout: float = 0.0, stochastic_depth: float = 0.0
) -> nn.Module:
    """Build a model of torchvision; its own shares of dropout and stochastic depth give way."""
    from torchvision import models
    from torchvision.ops import StochasticDepth

    body = models.get_model(name, weights=None, num_classes=len(schema.classes),
                            **PARTS.get(name, {}))  # fmt: skip
    assert isinstance(body, nn.Module)
    set_chances(body, nn.Dropout, dropout, "dropout")
    set_chances(body, StochasticDepth, stochastic_depth, "stochastic_depth")
    take_channels(body, schema.channels)
    return body


def set_chances(body: nn.Module, kind: type[nn.Module], largest: float, what: str) -> None:
    """Scale the chances of all parts of a `kind` so that the largest is `largest`.

    Raises ValueError where there is none and `largest` is not 0.
    """
    parts = [
        part for part in body.modules() if isinstance(part, kind) and getattr(part, "p", False)
    ]
    if largest and not parts:
        raise ValueError(f"it has no {what}")
    most = max((float(part.p) for part in parts), default=1.0)  # type: ignore[arg-type]
    for part in parts:
        part.p = largest * (part.p / most)  # type: ignore[operator,assignment]


def take_channels(body: nn.Module, channels: int) -> None:
    """Put a fresh first convolution into `body` where it takes another number of channels."""
    name, first = next((n, m) for n, m in body.named_modules() if isinstance(m, nn.Conv2d))
    if first.in_channels == channels:
        return
    parent, _, leaf = name.rpartition(".")
    new = nn.Conv2d(
        channels, first.out_channels, first.kernel_size, first.stride,  # type: ignore[arg-type]
        first.padding, first.dilation, bias=first.bias is not None,  # type: ignore[arg-type]
    )  # fmt: skip
    setattr(body.get_submodule(parent), leaf, new)
