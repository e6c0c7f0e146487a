"""Blend the scores of overlapping tiles; the result does not depend on their order, to the last bit.

Sums of floats depend on their order, so weighted scores are added as whole numbers of parts, each
limit / 2^30. Scores outside [-limit, limit] count as the limit. Rows that no other tile touches are handed
over and forgotten: with tiles row by row, no more rows are held than a tile has.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convlora.head import SegmentationHead
from convlora.inference.tiles import Tile

#: Sums stay below 2^31, also with what rounding adds.
_BITS = 30

#: Logits beyond it are as sure as it; in 2^30 parts, one is 2^-20 of a logit.
_LOGITS = 1024.0

#: Pixels that are turned into floats at once.
_AT_ONCE = 2**20


def score_limit(head: SegmentationHead) -> float:
    """Greatest size of the scores of a head, a power of two: of logits, or of a sum over masks in [0, 1]."""
    return 2.0 ** math.ceil(math.log2(head.num_tokens)) if head.kind == "mask-classification" else _LOGITS


@dataclass
class _Strip:
    """Rows that the same tiles cover."""

    top: int
    bottom: int
    missing: int  # tiles that have not been added yet
    sums: Tensor | None = None  # (C, rows, W) int32, while some tiles but not all are added


def blend(
    size: tuple[int, int],
    tiles: Sequence[Tile],
    score: Callable[[Tile], Tensor],
    receive: Callable[[int, Tensor], None],
    limit: float = _LOGITS,
    order: Iterable[int] | None = None,
) -> None:
    """Blend the scores of tiles.

    Args:
        size: (H, W) of the image.
        tiles: that cover it, from `plan_tiles`.
        score: gives the scores of a tile, (C, rows, columns) float on any device.
        receive: is handed finished rows, each once: the first of them, and the blended scores
            (C, rows, W) float32. If tiles come row by row, rows come from top to bottom.
        limit: see above; a power of two.
        order: of the tiles; by default as they are. It changes the memory, not the result.
    """
    strips = _cut(tiles)
    for i in range(len(tiles)) if order is None else order:
        tile = tiles[i]
        parts = _whole_numbers(score(tile), tile, limit)
        for strip in strips:
            if tile.top <= strip.top and strip.bottom <= tile.bottom:
                _add(strip, tile, parts, size[1])
                if not strip.missing:
                    _hand_over(strip, limit, receive)


def _cut(tiles: Sequence[Tile]) -> list[_Strip]:
    edges = sorted({tile.top for tile in tiles} | {tile.bottom for tile in tiles})
    return [
        _Strip(top, bottom, sum(tile.top <= top and bottom <= tile.bottom for tile in tiles))
        for top, bottom in itertools.pairwise(edges)
    ]


def _whole_numbers(scores: Tensor, tile: Tile, limit: float) -> Tensor:
    """Weighted scores as int32, in parts of limit / 2^30."""
    rows, columns = (torch.from_numpy(w).float() for w in (tile.row_weights, tile.column_weights))
    weights = rows[:, None] * columns * (2**_BITS / limit)
    return scores.float().cpu().clamp(-limit, limit).mul_(weights).round_().to(torch.int32)


def _add(strip: _Strip, tile: Tile, parts: Tensor, width: int) -> None:
    if strip.sums is None:
        strip.sums = torch.zeros(len(parts), strip.bottom - strip.top, width, dtype=torch.int32)
    rows = parts[:, strip.top - tile.top : strip.bottom - tile.top]
    strip.sums[:, :, tile.left : tile.right] += rows
    strip.missing -= 1


def _hand_over(strip: _Strip, limit: float, receive: Callable[[int, Tensor], None]) -> None:
    sums, strip.sums = strip.sums, None
    assert sums is not None
    step = max(1, _AT_ONCE // sums.shape[2])
    for first in range(0, sums.shape[1], step):
        receive(strip.top + first, sums[:, first : first + step].float().mul_(limit / 2**_BITS))
