"""How thick labelled areas are, to tell whether a model's masks are fine enough to show them."""

import math

import numpy as np

from convlora.data.masks import IGNORE


def thickness(mask: np.ndarray, cell: tuple[float, float] = (1.0, 1.0)) -> dict[int, float]:
    """Mean thickness of each class's areas: twice their size over the length of their borders.

    That is the width of a long strip and the radius of a disc. The length is pi / 4 of the borders between
    pixels, which is right on average over all directions (Cauchy-Crofton); of what is upright alone, pi / 4
    of the true length. Neither the edge of the image nor 'ignore' is a border.

    Args:
        mask: (H, W) uint8 class ids, 255 is 'ignore'.
        cell: (height, width) in pixels of what to measure in.

    Returns:
        Class id -> thickness in cells; inf for a class without any border.
    """
    height, width = cell
    found = {}
    down = _borders(mask[:-1], mask[1:]) / width  # a border between two rows is a pixel wide
    across = _borders(mask[:, :-1], mask[:, 1:]) / height
    sizes = np.bincount(mask.ravel(), minlength=256) / (height * width)
    lengths = math.pi / 4 * (down + across)
    for value in np.flatnonzero(sizes).tolist():
        if value != IGNORE:
            found[value] = float(2 * sizes[value] / lengths[value]) if lengths[value] else math.inf
    return found


def _borders(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How many of the pairs of neighbours have a class on one side alone: (256,)."""
    apart = (one != other) & (one != IGNORE) & (other != IGNORE)
    return np.bincount(one[apart], minlength=256) + np.bincount(other[apart], minlength=256)
