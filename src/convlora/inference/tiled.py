"""Predict an image in tiles, in rows: only class ids are held for the whole of it."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from convlora.data.images import to_float
from convlora.errors import ConfigError
from convlora.head import SegmentationHead, class_ids
from convlora.inference.blending import blend, score_limit
from convlora.inference.tiles import Tile, Tiles, plan_tiles

#: Called with the first of some rows, and their probabilities (K, rows, W) float32.
Receive = Callable[[int, Tensor], None]

#: Scores (C, h, w) of a picture (h, w, 3) float32 in [0, 1], at its own size.
Score = Callable[[np.ndarray], Tensor]


def predict_rows(
    pixels: np.ndarray, tiles: Tiles, head: SegmentationHead, score: Score, receive: Receive
) -> np.ndarray:
    """Score the tiles, blend the scores, and decide.

    Args:
        pixels: (H, W, 3) uint8, or float32 in [0, 1].
        tiles: how to cut.
        head: says how scores become probabilities.
        score: the model.
        receive: is handed probabilities, each row once, from top to bottom.

    Returns:
        (H, W) uint8 class ids.

    Raises:
        ConfigError: the model gives values that are not finite.
    """
    size = (pixels.shape[0], pixels.shape[1])
    ids = np.empty(size, np.uint8)

    def scores(tile: Tile) -> Tensor:
        found = score(to_float(pixels[tile.top : tile.bottom, tile.left : tile.right]))
        check_finite(found)
        return found

    def decide(top: int, rows: Tensor) -> None:
        probabilities = head.probabilities(rows[None])[0]
        ids[top : top + rows.shape[1]] = class_ids(probabilities).numpy()
        receive(top, probabilities)

    blend(size, plan_tiles(size, tiles), scores, decide, score_limit(head))
    return ids


class Collected:
    """Receives the probabilities of an image of (H, W) and keeps them."""

    def __init__(self, classes: int, size: tuple[int, int]) -> None:
        self.probabilities = torch.empty(classes, *size)

    def __call__(self, top: int, rows: Tensor) -> None:
        """Keep some rows; see `Receive`."""
        self.probabilities[:, top : top + rows.shape[1]] = rows


def forget(top: int, rows: Tensor) -> None:
    """Receive probabilities that nobody asked for."""


def check_finite(values: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        ConfigError: there are any.
    """
    if not bool(values.isfinite().all()):
        raise ConfigError(
            "The model gives values that are not finite for this image. Use precision fp32; "
            "if that does not help, the model itself is damaged."
        )
