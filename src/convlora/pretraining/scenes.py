"""Generated scenes with the masks of their objects, for promptable pretraining."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from convlora.errors import ConfigError
from convlora.pretraining.degrade import Bytes, degrade, to_bytes
from convlora.pretraining.families.cells import draw_cells
from convlora.pretraining.families.curves import draw_curves
from convlora.pretraining.families.objects import draw_leaves, draw_on_photo, draw_shapes
from convlora.pretraining.families.parcels import draw_buildings, draw_parcels
from convlora.pretraining.families.tissue import draw_tissue
from convlora.pretraining.shapes import Drawing, Ids
from convlora.pretraining.textures import TextureBank

Family = Callable[[np.random.Generator, int, TextureBank], Drawing]

FAMILIES: dict[str, tuple[Family, float]] = {  # name -> function, weight
    "cells": (draw_cells, 0.22),
    "curves": (draw_curves, 0.20),
    "tissue": (draw_tissue, 0.16),
    "parcels": (draw_parcels, 0.08),
    "buildings": (draw_buildings, 0.06),
    "shapes": (draw_shapes, 0.12),
    "photo": (draw_on_photo, 0.10),
    "leaves": (draw_leaves, 0.06),
}
_LEAST_AREA = 6  # pixels; smaller remains of an object are noise to a prompt
MIN_SIZE = 64


@dataclass(frozen=True)
class Scene:
    """An image and two maps of what is in it.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        instances: uint8 (H, W), 0 is background, 1..n the visible part of object n, n <= 250, no gaps.
        coarse: uint8 (H, W), the same for larger groups: whole objects made of parts, networks, all cells.
    """

    image: Bytes
    instances: Ids
    coarse: Ids


def generate_scene(
    rng: np.random.Generator,
    size: int = 256,
    textures: TextureBank | None = None,
    family: str | None = None,
    clean: bool = False,
) -> Scene:
    """Draw one scene.

    Args:
        rng: source of randomness; the same state gives the same scene.
        size: side in pixels, 64 to 1024.
        textures: source of textures; a bank without photographs if None.
        family: one of `FAMILIES`, drawn by weight if None.
        clean: leave out blur, noise and the other degradations.

    Raises:
        ConfigError: the size or the family is not valid.
    """
    if not MIN_SIZE <= size <= 1024:
        raise ConfigError(f"size: got {size}; the rule is {MIN_SIZE} to 1024 pixels")
    check_families([] if family is None else [family])
    textures = TextureBank() if textures is None else textures
    if family is None:
        family = draw_family(rng)
    drawing = FAMILIES[family][0](rng, size, textures)
    image = to_bytes(drawing.image) if clean else degrade(rng, drawing.image, textures)
    return Scene(image, compact(drawing.instances), compact(drawing.coarse))


def check_families(names: Sequence[str]) -> None:
    """Raise a ConfigError unless each is one of `FAMILIES`."""
    for name in names:
        if name not in FAMILIES:
            raise ConfigError(f"family: got {name!r}; choose one of {', '.join(FAMILIES)}")


def draw_family(rng: np.random.Generator, names: Sequence[str] = ()) -> str:
    """One of these families, of all if there are none, by weight."""
    names = names or list(FAMILIES)
    edges = np.cumsum([FAMILIES[name][1] for name in names])
    return names[int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))]


def compact(ids: Ids) -> Ids:
    """Renumber 1..n without gaps, dropping objects of a few pixels."""
    picture = Image.fromarray(ids)  # its histogram and table look-up take a fifth of NumPy's time
    keep = np.array(picture.histogram()) >= _LEAST_AREA
    keep[0] = False
    return np.asarray(picture.point(np.where(keep, np.cumsum(keep), 0).tolist()))
