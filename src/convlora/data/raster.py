"""Polygons and run lengths as pixels. A pixel belongs to a polygon if its centre does."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Shape:
    """One labelled object.

    Args:
        value: class id, or 255.
        polygons: (N, 2) float64 x and y in pixels, the image's corner at 0; their union is the object.
        runs: lengths of runs of 0 and 1 in turn, column by column, in place of polygons.
    """

    value: int
    polygons: tuple[np.ndarray, ...] = ()
    runs: np.ndarray | None = None

    @property
    def area(self) -> float:
        """Pixels, not clipped to the image."""
        if self.runs is not None:
            return float(self.runs[1::2].sum())
        return sum(polygon_area(points) for points in self.polygons)


def in_order(shapes: Sequence[Shape], ignore: int) -> tuple[Shape, ...]:
    """Order of painting: what is ignored, then large before small; of equal ones the later is on top."""
    return tuple(sorted(shapes, key=lambda shape: (shape.value != ignore, -shape.area)))


def paint(shapes: Sequence[Shape], size: tuple[int, int]) -> np.ndarray:
    """Paint shapes over each other, the last on top: (H, W) uint8, 0 where there is none."""
    canvas = np.zeros(size, np.uint8)
    for shape in shapes:
        if shape.runs is not None:
            canvas[decode_runs(shape.runs, size)] = shape.value
        for points in shape.polygons:
            window, inside = fill_polygon(points, size)
            canvas[window][inside] = shape.value
    return canvas


def fill_polygon(points: np.ndarray, size: tuple[int, int]) -> tuple[tuple[slice, slice], np.ndarray]:
    """Pixels whose centres are inside a polygon, by the even-odd rule.

    A centre that lies exactly on an edge belongs to the polygon on the edge's right or lower side, so that
    polygons that share an edge neither overlap nor leave a gap. What is outside the image is cut off.

    Args:
        points: (N, 2) float x and y; pixel (row 0, column 0) covers 0 to 1, its centre is at 0.5.
        size: (H, W) of the image.

    Returns:
        The window of the image that the polygon can touch, and (h, w) bool within it.
    """
    x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
    top, bottom = (int(row) for row in _first_centre(np.array([y.min(), y.max()])).clip(0, size[0]))
    left, right = (int(column) for column in _first_centre(np.array([x.min(), x.max()])).clip(0, size[1]))
    toggles = np.zeros((bottom - top, right - left + 1), np.uint8)
    window = slice(top, bottom), slice(left, right)
    if toggles.shape[0] == 0 or toggles.shape[1] == 1:
        return window, toggles[:, :-1].astype(bool)

    # from the upper end on: a neighbour has the edge in the other direction, and must round as this one does
    next_x, next_y, upward = np.roll(x, -1), np.roll(y, -1), np.roll(y, -1) < y
    x, next_x = np.where(upward, next_x, x), np.where(upward, x, next_x)
    y, next_y = np.minimum(y, next_y), np.maximum(y, next_y)
    first = _first_centre(y).clip(top, bottom)
    counts = _first_centre(next_y).clip(top, bottom) - first  # rows that each edge crosses
    edge = np.repeat(np.arange(len(x)), counts)
    row = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + first[edge]
    crossing = x[edge] + (row + 0.5 - y[edge]) * (next_x - x)[edge] / (next_y - y)[edge]
    column = _first_centre(crossing).clip(left, right)
    np.bitwise_xor.at(toggles, (row - top, column - left), 1)
    return window, np.bitwise_xor.accumulate(toggles, axis=1)[:, :-1].astype(bool)


def polygon_area(points: np.ndarray) -> float:
    """Area by the shoelace formula."""
    x, y = points[:, 0], points[:, 1]
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def decode_runs(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Runs of 0 and 1 in turn, column by column, as (H, W) bool; they must add up to H * W."""
    height, width = size
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def parse_runs(text: str) -> np.ndarray:
    """Run lengths of a compressed COCO string.

    Each number is written in 5-bit groups, lowest first, as characters from '0' on; the sixth bit says that
    more follows, the fifth bit of the last group is the sign. From the fourth number on, the difference to
    the number two before is written (definition: cocoapi, maskApi.c, rleFrString).

    Raises:
        ValueError: the text ends within a number or holds another character.
    """
    runs: list[int] = []
    number = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise ValueError(f"the character {character!r} is not of that code")
        number |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            number -= 1 << shift
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
        number = shift = 0
    if shift:
        raise ValueError("it ends within a number")
    return np.array(runs, dtype=np.int64)


def _first_centre(places: np.ndarray) -> np.ndarray:
    """Index of the first pixel whose centre is at or beyond each place."""
    return np.ceil(places.clip(-1e9, 1e9) - 0.5).astype(np.int64)
