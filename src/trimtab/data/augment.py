"""What a recipe's augment section does to train batches, in which order; all augmentations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from trimtab.data.colour import blur, recolour, sharpen
from trimtab.data.crop import random_resized_crop
from trimtab.data.draw import Draw
from trimtab.data.policies import randaugment, trivialaugment
from trimtab.data.warp import Moves, affine, cutout, moved_batch
from trimtab.errors import UsageError
from trimtab.records.sections import AugmentSection
from trimtab.registry import lookup

Augmentation = Callable[..., Tensor]  # (inputs (N, C, H, W), draw, *, strength) -> inputs
Step = Callable[[Tensor, Draw], Tensor]


def moves_of(augment: AugmentSection) -> Moves:
    """Return the moves by whole pixels, which come first; `flip: auto` means off here."""
    flips = {True: "random", "alternating": "alternating"}
    return Moves(augment.shift, flips.get(augment.flip, ""), augment.flip_vertical)


def steps_of(augment: AugmentSection) -> list[Step]:
    """Return what changes float values, in order; cutout, the last, is not among them.

    Raises UsageError for an unknown policy.
    """
    steps: list[Step] = []
    if augment.rotate or augment.zoom or augment.shear:
        steps.append(partial(affine, rotate=augment.rotate, zoom=augment.zoom, shear=augment.shear))
    colours = {name: getattr(augment, name)
               for name in ("brightness", "contrast", "saturation", "hue")}  # fmt: skip
    if any(colours.values()):
        steps.append(partial(recolour, **colours))
    if augment.blur:
        steps.append(partial(blur, strength=augment.blur))
    if augment.sharpen:
        steps.append(partial(sharpen, strength=augment.sharpen))
    return steps + policy_of(augment)


def policy_of(augment: AugmentSection) -> list[Step]:
    """Return the policy as a step, or nothing; raises UsageError for an unknown one."""
    if augment.policy == "none":
        return []
    part = lookup("policy", POLICIES, augment.policy)
    strength = 1.0 if part is trivialaugment else augment.policy_strength
    return [partial(checked, part, augment.policy, strength)]


def checked(part: Augmentation, name: str, strength: float, inputs: Tensor, draw: Draw) -> Tensor:
    """Apply a policy; raises UsageError where it does not give back what it was given."""
    outputs = part(inputs, draw, strength=strength)
    got = (tuple(outputs.shape), outputs.dtype)
    if got != (tuple(inputs.shape), inputs.dtype):
        raise UsageError(
            f"policy '{name}' gave {got[1]} {got[0]}, wanted {inputs.dtype} {tuple(inputs.shape)}",
            "an augmentation is a function (inputs (N, C, H, W), draw, *, strength) -> inputs",
        )
    return outputs


def shift(inputs: Tensor, draw: Draw, *, strength: float = 0.125) -> Tensor:
    """Move every picture by its own random offset, at most `strength` of each side.

    What comes in at an edge is the picture mirrored (He et al. 2015, section 4.2, with reflection
    for zeros).
    """
    return moved_batch(inputs, draw, Moves(shift=strength)) if strength else inputs


def flip(inputs: Tensor, draw: Draw, *, strength: float = 1) -> Tensor:
    """Mirror every picture left to right with probability one half; strength 0 is off, 1 on."""
    return moved_batch(inputs, draw, Moves(flip="random")) if strength else inputs


def flip_alternating(inputs: Tensor, draw: Draw, *, strength: float = 1) -> Tensor:
    """Mirror a random half of the pictures, and the other half in the next epoch.

    Strength 0 is off, 1 on (Jordan 2024, section 3.6).
    """
    return moved_batch(inputs, draw, Moves(flip="alternating")) if strength else inputs


def flip_vertical(inputs: Tensor, draw: Draw, *, strength: float = 1) -> Tensor:
    """Turn every picture upside down with probability one half; strength 0 is off, 1 on."""
    return moved_batch(inputs, draw, Moves(flip_vertical=True)) if strength else inputs


def rotate(inputs: Tensor, draw: Draw, *, strength: float = 15) -> Tensor:
    """Turn every picture about its centre by at most `strength` degrees."""
    return affine(inputs, draw, rotate=strength)


def zoom(inputs: Tensor, draw: Draw, *, strength: float = 0.2) -> Tensor:
    """Scale every picture about its centre by a factor within 1 - `strength` and 1 + `strength`."""
    return affine(inputs, draw, zoom=strength)


def shear(inputs: Tensor, draw: Draw, *, strength: float = 10) -> Tensor:
    """Slant every picture left or right by at most `strength` degrees."""
    return affine(inputs, draw, shear=strength)


def brightness(inputs: Tensor, draw: Draw, *, strength: float = 0.2) -> Tensor:
    """Add at most `strength` of white to every picture, or take it away."""
    return recolour(inputs, draw, brightness=strength)


def contrast(inputs: Tensor, draw: Draw, *, strength: float = 0.4) -> Tensor:
    """Spread the values of every picture about its mean by 1 - `strength` to 1 + `strength`."""
    return recolour(inputs, draw, contrast=strength)


def saturation(inputs: Tensor, draw: Draw, *, strength: float = 0.4) -> Tensor:
    """Spread the colours about grey by 1 - `strength` to 1 + `strength`; grey pictures stay."""
    return recolour(inputs, draw, saturation=strength)


def hue(inputs: Tensor, draw: Draw, *, strength: float = 0.1) -> Tensor:
    """Turn the hue by at most `strength` of the circle; grey pictures stay."""
    return recolour(inputs, draw, hue=strength)


POLICIES: dict[str, Augmentation] = {"randaugment": randaugment, "trivialaugment": trivialaugment}
AUGMENTATIONS: dict[str, Augmentation] = {
    "crop": random_resized_crop,
    "shift": shift,
    "flip": flip,
    "flip_alternating": flip_alternating,
    "flip_vertical": flip_vertical,
    "rotate": rotate,
    "zoom": zoom,
    "shear": shear,
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
    "blur": blur,
    "sharpen": sharpen,
    "cutout": cutout,
    **POLICIES,
}
