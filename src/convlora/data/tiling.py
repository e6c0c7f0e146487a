"""Where tiles lie along a side of an image, and scenes cut into images to train on."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from convlora.data.images import read_pixels
from convlora.data.layout import Pair
from convlora.data.masks import IGNORE

#: A smaller tile shows a model less than one of its patches' surroundings.
LEAST_SIDE = 32


@dataclass(frozen=True)
class Part:
    """A tile of an image with its label.

    Args:
        name: the image's, with the row and the column of the upper left corner.
        pixels: (side, side, 3) uint8.
        ids: (side, side) uint8 class ids; 255 counts in no loss and no score.
    """

    name: str
    pixels: np.ndarray
    ids: np.ndarray

    @property
    def teaches(self) -> bool:
        """Whether there is anything to see and a label; borders without data have one colour."""
        return bool((self.pixels != self.pixels[0, 0]).any() and (self.ids != IGNORE).any())

    def save_image(self, file: Path) -> None:
        """Write the pixels as PNG, grey ones with one channel."""
        first = self.pixels[..., 0]
        grey = (self.pixels == first[..., None]).all()
        Image.fromarray(np.ascontiguousarray(first) if grey else self.pixels).save(file, format="PNG")


def tile_starts(length: int, side: int, overlap: int = 0) -> list[int]:
    """Starts of the fewest tiles that cover `length`, spread evenly; they overlap by `overlap` or more."""
    if length <= side:
        return [0]
    count = math.ceil((length - overlap) / (side - overlap))
    return [i * (length - side) // (count - 1) for i in range(count)]


def cut(pair: Pair, ids: np.ndarray, side: int) -> Iterator[Part]:
    """Cut an image and its label, row by row.

    16-bit and float grey is stretched over the whole image, as `predict` with tiles does it, then rounded to
    8 bits.

    Args:
        pair: image and label.
        ids: (H, W) class ids of the label.
        side: of a tile in pixels; what the image has less, a tile has less too.

    Raises:
        FileError: the image cannot be read.
    """
    pixels = read_pixels(pair.image)
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels * 255).astype(np.uint8)
    height, width = ids.shape
    for top in tile_starts(height, side):
        for left in tile_starts(width, side):
            place = slice(top, top + side), slice(left, left + side)
            yield Part(f"{pair.stem}_{top:05}_{left:05}", pixels[place], ids[place])
