"""Start from weights that were trained elsewhere: find them, fit them in, say what did not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trimtab.errors import UsageError
from trimtab.machine.progress import say
from trimtab.models.build import Network, named
from trimtab.models.depth import head_of
from trimtab.models.image import OWN_NAMES
from trimtab.models.libraries import as_built, library_of
from trimtab.models.published import (
    CACHE,
    DOWNLOAD,
    IMAGENET,
    Statistics,
    file_of,
    published,
)
from trimtab.models.tensors import digest_of, read_tensors
from trimtab.records.recipe import Recipe
from trimtab.records.run import open_run
from trimtab.records.sections import FRESH

BODY, NORMALIZE = "body.", "normalize."  # names in the weights of a run
COUNTER = "num_batches_tracked"  # of batch norms, absent in old files and not used
WHITE = 255.0
NEW_HEAD = "leave model.keep_head off: the head is learnt anew"


@dataclass(frozen=True)
class Source:
    """Weights on this machine: file, tensors, and the statistics their pixels had in training.

    `assumed` says where the statistics are from if neither library nor run told them; `classes` are
    those of the head where a run folder tells them.
    """

    file: Path
    tensors: dict[str, Tensor]
    statistics: Statistics
    assumed: str = ""
    classes: tuple[str, ...] | None = None


def require_named(recipe: Recipe) -> None:
    """Raise UsageError where pretrained weights are wanted for a network that has no name yet."""
    if recipe.model.pretrained != FRESH and recipe.model.name == "auto":
        raise UsageError(f"model.pretrained {recipe.model.pretrained} needs the network it is for",
                         "name it: model.name, e.g. mobilenet_v2")  # fmt: skip


def require_for_each(recipe: Recipe, names: Iterable[str]) -> None:
    """Raise UsageError where the models `names` cannot each have the pretrained weights wanted.

    A file or run is for one of them only; what a library publishes is looked up, and what should
    be in its cache must be there.
    """
    word = recipe.model.pretrained
    kind, _, tag = word.partition(":")
    if word == FRESH:
        return
    if kind not in (CACHE, DOWNLOAD):
        raise UsageError(f"model.pretrained {word} holds weights of one network, and there are "
                         "several to compare", f"{CACHE} and {DOWNLOAD} mean those of each; "
                         "or train them one by one")  # fmt: skip
    for name in names:
        try:
            found = published(name, tag)
            if kind == CACHE:
                file_of(found, fetch=False)
        except UsageError as error:
            raise UsageError(f"{name} cannot start from {word}: {error.message}",
                             f"leave it out of the comparison; {DOWNLOAD} fetches what is "
                             "published and not here") from error  # fmt: skip


def start_from(network: Network, recipe: Recipe) -> dict[str, Any]:
    """Put the weights that `model.pretrained` names into a fresh network; return what was taken.

    The network normalises as the weights were trained, unless the recipe says otherwise. The head
    stays fresh without `model.keep_head`. Raises UsageError for weights that are missing, cannot be
    read, or do not fit anywhere but in the head, and for a head to keep that is for other classes.
    """
    choice = recipe.model
    if choice.whiten or choice.identity:
        raise UsageError("model.whiten and model.identity would overwrite pretrained weights",
                         "leave them off")  # fmt: skip
    source = source_of(recipe)
    if choice.keep_head:
        require_classes(source, network.classes)
    head, _ = head_of(network.body)
    state = fitted(network.body, source, keep_head=choice.keep_head, model=choice.name)
    network.body.load_state_dict(state, strict=False)
    if not choice.mean:
        network.normalize.use(*source.statistics)
    kept = "kept" if choice.keep_head else "new"
    assumed = "" if choice.mean else assumption(source)
    say(f"{source.file.name}: {len(state)} tensors, the head '{head}' is {kept}{assumed}")
    return {"value": len(state), "unit": "tensors", "file": source.file.name, "head": kept,
            "sha256": digest_of(source.file)}  # fmt: skip


def assumption(source: Source) -> str:
    """Return what is said of statistics that nobody told."""
    if not source.assumed:
        return ""
    mean, std = (" ".join(f"{value:.4g}" for value in values) for values in source.statistics)
    return (f"; pixels are normalised as for {source.assumed} (model.mean {mean}, "
            f"model.std {std}), which the file does not tell")  # fmt: skip


def require_classes(source: Source, classes: tuple[str, ...]) -> None:
    """Raise UsageError where a head is for other classes, or for these in another order."""
    known = source.classes
    if known is None or known == classes:
        return
    what = f"it has {len(known)}, the data have {len(classes)}"
    if len(known) == len(classes):
        at = next(at for at, name in enumerate(known) if name != classes[at])
        what = f"class {at + 1} is {known[at]!r}, in the data {classes[at]!r}"
    raise UsageError(f"the head in {source.file} is not for these classes: {what}", NEW_HEAD)


def source_of(recipe: Recipe) -> Source:
    """Find and read the weights that a recipe names."""
    word, name = recipe.model.pretrained, recipe.model.name
    kind, _, tag = word.partition(":")
    if kind in (CACHE, DOWNLOAD):
        found = published(name, tag)
        path = file_of(found, fetch=kind == DOWNLOAD, usual=usual_statistics(name) or IMAGENET)
        return Source(path, as_built(name, read_tensors(path)), found.statistics)
    path, classes = Path(word).expanduser(), None
    if path.is_dir():
        run = open_run(path)
        path, classes = run.weights, run.schema.classes
    tensors = read_tensors(path)
    if any(key.startswith(NORMALIZE) for key in tensors):
        return of_run(path, tensors, classes)
    usual = usual_statistics(name)
    assumed = f"the default weights of {name}" if usual else "ImageNet"
    return Source(path, as_built(name, tensors), usual or IMAGENET, assumed)


def usual_statistics(name: str) -> Statistics | None:
    """Return the statistics with which a library trains the model `name`, None for others."""
    if name in OWN_NAMES:
        return None
    try:
        return published(name).statistics
    except UsageError:  # nobody says it
        return None


def of_run(
    path: Path, tensors: Mapping[str, Tensor], classes: tuple[str, ...] | None
) -> Source:  # fmt: skip
    """Return the weights of a run, which bring their own normalisation."""
    body = {key.removeprefix(BODY): value for key, value in tensors.items() if BODY in key}
    try:
        mean, std = (tensors[NORMALIZE + key].flatten() / WHITE for key in ("mean", "std"))
    except KeyError as error:
        raise UsageError(f"{path} has no {error}", "was it written by trimtab?") from error
    return Source(path, body, (tuple(mean.tolist()), tuple(std.tolist())), classes=classes)


def fitted(body: nn.Module, source: Source, *, keep_head: bool, model: str) -> dict[str, Tensor]:
    """Return the tensors that go into `body`, those of its first layer for its channels.

    Raises UsageError with counts and examples where more than the head does not fit.
    """
    own, found = body.state_dict(), for_channels(body, source)
    head = head_of(body)[0] + "."
    rest = {key for key in found if not key.startswith(head)}
    wanted = {key for key in own if not key.startswith(head)}
    wrong = {key for key in own.keys() & found.keys() if own[key].shape != found[key].shape}
    faults = [
        *named("missing", {key for key in wanted - rest if not key.endswith(COUNTER)}),
        *named("unexpected", rest - wanted),
        *named("of another shape", wrong & rest),
    ]
    if faults:
        what = f"{source.file} does not fit {model}: {'; '.join(faults)}"
        raise UsageError(what, hint_for(model))
    if not keep_head:
        return {key: found[key] for key in rest}
    if lost := wrong | ((own.keys() ^ found.keys()) - rest - wanted):
        raise UsageError(
            f"the head in {source.file.name} is not for these classes: {', '.join(sorted(lost))}",
            NEW_HEAD,
        )
    return found


def hint_for(model: str) -> str:
    """Return what to try where weights do not fit a model."""
    found = library_of(model)
    if found is None:
        return "name the model the weights are of: model.name"
    return (f"'{model}' is {found[0]}'s: name the model the weights are of, with its library where "
            "both have it, e.g. torchvision.efficientnet_b0")  # fmt: skip


def for_channels(body: nn.Module, source: Source) -> dict[str, Tensor]:
    """Return the tensors with the first convolution for as many channels as `body` takes.

    For grey pictures the filters are added up, which is what they see in a grey picture that is
    written as colour; for colour ones those of grey are spread evenly. (As timm does.)
    """
    found = dict(source.tensors)
    first = next((n for n, m in body.named_modules() if isinstance(m, nn.Conv2d)), "") + ".weight"
    if first not in found or found[first].ndim != 4:
        return found
    filters, wanted = found[first].float(), body.state_dict()[first].shape[1]
    if (filters.shape[1], wanted) == (3, 1):
        found[first] = filters.sum(1, keepdim=True)
        say(f"grey pictures: the three filters of each channel in '{first}' are added up")
    elif (filters.shape[1], wanted) == (1, 3):
        found[first] = filters.expand(-1, 3, -1, -1) / 3
        say(f"colour pictures: each filter in '{first}' is spread over three channels")
    return found
