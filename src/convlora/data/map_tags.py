"""What maps write into the tags of a TIFF: where they lie, and the value of pixels without data."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from convlora.data.tiff import tag_values

_NO_DATA = 42113  # GDAL's, a number as text
_SCALE, _TIE, _MATRIX, _KEYS = 33550, 33922, 34264, 34735  # GeoTIFF's
_GEOGRAPHIC, _PROJECTED = 2048, 3072  # keys with the number of a coordinate system
_OWN = 32767  # a coordinate system without a number


@dataclass(frozen=True)
class Place:
    """Where pixels lie: x = a column + b row + c, y = d column + e row + f.

    Args:
        affine: a, b, c, d, e, f.
        system: EPSG number of the coordinate system, 0 if not known.
    """

    affine: tuple[float, ...]
    system: int

    def pixels_to(self, other: "Place", size: tuple[int, int]) -> float:
        """How far the corners of (H, W) pixels lie from another's, at most, in pixels of this one."""
        a, b, _, d, e, _ = self.affine
        area, farthest = a * e - b * d, 0.0
        for row, column in ((0, 0), (0, size[1]), (size[0], 0), size):
            (x0, y0), (x1, y1) = self._at(row, column), other._at(row, column)
            x, y = x1 - x0, y1 - y0
            farthest = max(farthest, math.hypot((e * x - b * y) / area, (a * y - d * x) / area))
        return farthest

    def _at(self, row: int, column: int) -> tuple[float, float]:
        a, b, c, d, e, f = self.affine
        return a * column + b * row + c, d * column + e * row + f


def place_of(image: Image.Image) -> Place | None:
    """Where a GeoTIFF lies; None where it does not tell, or tells it by several points.

    Whether the corner or the middle of a pixel is meant is not looked at: it is half a pixel.
    """
    scale, tie, matrix = (_floats(image, tag) for tag in (_SCALE, _TIE, _MATRIX))
    if len(matrix) == 16:
        affine = (matrix[0], matrix[1], matrix[3], matrix[4], matrix[5], matrix[7])
    elif len(scale) == 3 and len(tie) == 6:
        affine = (scale[0], 0.0, tie[3] - tie[0] * scale[0], 0.0, -scale[1], tie[4] + tie[1] * scale[1])
    else:
        return None
    area = affine[0] * affine[4] - affine[1] * affine[3]
    return Place(affine, _system(image)) if math.isfinite(sum(affine)) and area else None


def _system(image: Image.Image) -> int:
    keys = tag_values(image, _KEYS)
    entries = [keys[i : i + 4] for i in range(4, len(keys) - 3, 4)]
    numbers = {key: value for key, where, _, value in entries if where == 0}
    number = numbers.get(_PROJECTED) or numbers.get(_GEOGRAPHIC)
    return number if isinstance(number, int) and number != _OWN else 0


def _floats(image: Image.Image, tag: int) -> tuple[float, ...]:
    return tuple(float(v) for v in tag_values(image, tag) if isinstance(v, int | float))


def no_data_value(image: Image.Image) -> float | None:
    """The number, NaN perhaps, that the file declares as 'no data'; None where it declares none."""
    text = next(iter(tag_values(image, _NO_DATA)), None)
    try:
        return None if text is None else float(str(text).strip("\0 "))
    except ValueError:
        return None


def without_data(values: np.ndarray, image: Image.Image) -> np.ndarray | None:
    """Where pixels hold what the file declares as 'no data' in all bands.

    Args:
        values: (H, W) or (H, W, bands), in the file's own type.
        image: where they come from, with its tags.

    Returns:
        (H, W) bool; None where nothing is declared.
    """
    number = no_data_value(image)
    if number is None:
        return None
    found = _equal(values, number)
    return found if found.ndim == 2 else np.asarray(found.all(axis=2))


def _equal(values: np.ndarray, number: float) -> np.ndarray:
    """Where pixels are a number: of floats rounded to their type, as GDAL does."""
    if math.isnan(number):
        return np.isnan(values)
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.equal(values, number)
    if number.is_integer():
        return np.equal(values, int(number))  # one that the type does not have is nowhere
    return np.zeros(values.shape, bool)
