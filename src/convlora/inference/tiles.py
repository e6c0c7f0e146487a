"""Where the tiles of a large image lie, and how much each of them counts at every pixel."""

import itertools
from dataclasses import dataclass

import numpy as np

from convlora.data.tiling import LEAST_SIDE, tile_starts
from convlora.errors import ConfigError


@dataclass(frozen=True)
class Tiles:
    """How images are cut.

    Args:
        side: of a tile, in pixels of the image.
        overlap: pixels over which a tile fades into its neighbour; tiles overlap by at least as many.
    """

    side: int
    overlap: int

    def cut(self, size: tuple[int, int]) -> bool:
        """Whether an image of (H, W) is larger than a tile."""
        return max(size) > self.side


@dataclass(frozen=True)
class Tile:
    """Rows [top, bottom) and columns [left, right) of an image, and the weight of each of them."""

    top: int
    bottom: int
    left: int
    right: int
    row_weights: np.ndarray  # (bottom - top,) float64, 0 to 1
    column_weights: np.ndarray  # (right - left,) float64, 0 to 1


def choose_tiles(tile: object, overlap: object = None) -> Tiles | None:
    """Check the options.

    Args:
        tile: side of a tile in pixels of the image; None does not cut.
        overlap: see `Tiles`; by default a quarter of the tile.

    Raises:
        ConfigError: one of them is no whole number or out of range, or there is an overlap but no tile.
    """
    if tile is None:
        if overlap is not None:
            raise ConfigError(
                f"tile_overlap is {overlap!r}, but there is no tile. Give the side of the tiles too (--tile)."
            )
        return None
    side = _whole("tile", tile, f"{LEAST_SIDE} or more")
    if side < LEAST_SIDE:
        raise ConfigError(
            f"tile is {side}; it must be {LEAST_SIDE} pixels or more. Take about as many as the training "
            "images had, so that objects look as large as in training."
        )
    if overlap is None:
        return Tiles(side, side // 4)
    pixels = _whole("tile_overlap", overlap, "less than half of tile")
    if not 0 <= pixels < side / 2:
        raise ConfigError(
            f"tile_overlap is {pixels}; it must be from 0 to {(side - 1) // 2}, less than half of tile, "
            f"which is {side}."
        )
    return Tiles(side, pixels)


def plan_tiles(size: tuple[int, int], tiles: Tiles) -> list[Tile]:
    """Cover an image of (H, W) with tiles, row by row.

    All tiles have one size, the side or what the image has of it. They are spread evenly, as few as overlap
    by `tiles.overlap` or more. At every pixel the weights, that of its row times that of its column, sum to
    one over the tiles. From one pixel to the next the weights of the tiles shift by 1 / overlap or less.
    """
    rows, columns = (_spans(length, tiles) for length in size)
    return [
        Tile(top, bottom, left, right, row_weights, column_weights)
        for top, bottom, row_weights in rows
        for left, right, column_weights in columns
    ]


def _spans(length: int, tiles: Tiles) -> list[tuple[int, int, np.ndarray]]:
    """Start, end and weights of the tiles along one axis."""
    side = min(tiles.side, length)
    starts = tile_starts(length, side, tiles.overlap)
    count = len(starts)
    # tile i counts what has come up before it, less what comes up after it: sums to one wherever they lie
    borders = [(after + before + side) / 2 for before, after in itertools.pairwise(starts)]
    spans = []
    for i, start in enumerate(starts):
        centres = np.arange(start, start + side) + 0.5
        risen = _rise(centres, borders[i - 1], tiles.overlap) if i else np.ones(side)
        fallen = _rise(centres, borders[i], tiles.overlap) if i < count - 1 else np.zeros(side)
        spans.append((start, start + side, risen - fallen))
    return spans


def _rise(centres: np.ndarray, border: float, width: int) -> np.ndarray:
    """From 0 to 1 in a straight line over `width` pixels around the border; a step if that is 0."""
    if width == 0:
        return (centres > border).astype(np.float64)
    return np.clip((centres - border) / width + 0.5, 0, 1)


def _whole(name: str, value: object, rule: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of pixels, {rule}.")
    return int(value)
