"""Where timm and torchvision keep the weights they publish: their local caches, or the network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import MachineError, UsageError
from trimtab.machine.progress import say
from trimtab.models.libraries import PARTS, TIMM, library_of

CACHE, DOWNLOAD = "cache", "download"
FILES = ("model.safetensors", "pytorch_model.bin")  # of a repository of timm, the first it has
HASH = re.compile(r"-([a-f0-9]{8,})\.")  # of the content, in the name of a file of torch
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
INCEPTION = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Published:
    """Published weights: a repository of the Hugging Face hub, or a file behind an address.

    `mean` and `std` are those of the pixels they were trained with, in fractions of white.
    """

    repository: str | None
    url: str | None
    statistics: Statistics


def published(name: str, tag: str = "") -> Published:
    """Return the weights that the library of model `name` publishes under `tag`, or by default.

    Raises UsageError for a model of no library, one without weights, and an unknown tag.
    """
    found = library_of(name)
    if found is None:
        raise UsageError(f"nobody publishes weights of '{name}'",
                         "give a file or a run folder as model.pretrained")  # fmt: skip
    library, plain = found
    return of_timm(plain, tag) if library == TIMM else of_torchvision(plain, tag)


def of_timm(name: str, tag: str) -> Published:
    """Return what timm publishes."""
    import timm
    from timm.models import list_pretrained

    try:
        facts = timm.get_pretrained_cfg(f"{name}.{tag}" if tag else name)
    except RuntimeError as error:
        tags = [one.partition(".")[2] for one in list_pretrained(f"{name}.*")]
        raise unknown_tag(name, tag, tags) from error
    if facts is None or not (facts.hf_hub_id or facts.url):
        raise UsageError(f"timm publishes no weights of {name}", "give a file as model.pretrained")
    url = facts.url[0] if isinstance(facts.url, tuple) else facts.url
    return Published(facts.hf_hub_id, url, (tuple(facts.mean), tuple(facts.std)))


def of_torchvision(name: str, tag: str) -> Published:
    """Return what torchvision publishes.

    With its own weights, its inceptions normalise once more inside (transform_input): all in all by
    0.5, which is done in front here.
    """
    from torchvision import models

    known: Any = models.get_model_weights(name)
    if tag and tag not in known.__members__:
        raise unknown_tag(name, tag, list(known.__members__))
    chosen = known[tag] if tag else known.DEFAULT
    if name in PARTS:
        return Published(None, chosen.url, INCEPTION)
    shown = chosen.transforms()
    return Published(None, chosen.url, (tuple(shown.mean), tuple(shown.std)))


def unknown_tag(name: str, tag: str, known: list[str]) -> UsageError:
    """Return the error for weights that a library does not publish."""
    return UsageError(f"no weights '{tag}' of {name} are published", f"known: {', '.join(known)}")


def file_of(weights: Published, *, fetch: bool, usual: Statistics = IMAGENET) -> Path:
    """Return the file of published weights in its usual cache, fetched where that is wanted.

    The caches are those of the libraries: HF_HUB_CACHE or HF_HOME, and TORCH_HOME. `usual` are the
    statistics that a file given by its path would get. Raises UsageError for a file that is not
    there, with its place, MachineError for one that cannot be fetched.
    """
    here = in_hub(weights.repository) if weights.repository else None
    place = torch_place(weights.url) if weights.url else None
    if here is None and place is not None and place.is_file():
        here = place
    if here is not None:
        return here
    if not fetch:
        raise UsageError(*absent(weights, place, usual))
    source = weights.repository or weights.url
    say(f"fetching {source}")
    try:
        return fetched(weights, place)
    except Exception as error:
        first = str(error).split("\n")[0][:200]
        hint = absent(weights, place, usual)[1]
        raise MachineError(f"cannot fetch {source}: {first}", hint) from error


def in_hub(repository: str) -> Path | None:
    """Return the weights of a repository in the cache of the hub, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, name) for name in FILES)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def torch_place(url: str) -> Path:
    """Return where torch keeps what it fetched from `url`."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def absent(weights: Published, place: Path | None, usual: Statistics) -> tuple[str, str]:
    """Return what is missing and where it belongs.

    A copy of a file does not say which weights it holds, so statistics that are not `usual` come
    with it.
    """
    if weights.repository:
        wanted = f"{FILES[0]} of {weights.repository} is not in the cache of the hub"
        way = f"model.pretrained: path/to/{FILES[0]} takes a copy of that file"
        if weights.statistics != usual:
            mean, std = (list(values) for values in weights.statistics)
            way += f", with model.mean: {mean} and model.std: {std}"
    else:
        wanted, way = f"there is no file {place}", f"put {weights.url} there"
    return wanted, f"model.pretrained: {DOWNLOAD} fetches it; without a network, {way}"


def fetched(weights: Published, place: Path | None) -> Path:
    """Fetch a file into its cache and return its path."""
    if weights.repository:
        from huggingface_hub import file_exists, hf_hub_download

        name = next((one for one in FILES if file_exists(weights.repository, one)), FILES[0])
        return Path(hf_hub_download(weights.repository, name))
    import torch

    assert place is not None
    assert weights.url is not None
    place.parent.mkdir(parents=True, exist_ok=True)
    known = HASH.search(place.name)
    torch.hub.download_url_to_file(weights.url, str(place), known[1] if known else None,
                                   progress=False)  # fmt: skip
    return place
