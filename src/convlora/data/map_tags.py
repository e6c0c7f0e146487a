"""What maps write into the tags of a TIFF: the value of pixels without data."""

import math

import numpy as np
from PIL import Image

from convlora.data.tiff import tag_values

_NO_DATA = 42113  # GDAL's, a number as text


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
    return found if found.ndim == 2 else found.all(axis=2)


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
