"""The map whose positions queries and keys have, and the logits that positions alone give."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class Grid(NamedTuple):
    """The map whose positions are the first H W of the N queries and keys; the others have no position."""

    height: int
    width: int

    @property
    def positions(self) -> int:
        """H W."""
        return self.height * self.width


def position_bias(by_row: Tensor, by_column: Tensor, N: int, grid: Grid) -> Tensor:
    """Logits of positions, (..., n, N), for n queries: by_row (..., n, H) and by_column (..., n, W)."""
    map_part = (by_row[..., :, None] + by_column[..., None, :]).flatten(-2)
    return map_part if grid.positions == N else F.pad(map_part, (0, N - grid.positions))


def slices(length: int, step: int) -> Iterator[slice]:
    """Cut 0 .. length into parts of `step`, the last one perhaps smaller."""
    return (slice(start, start + step) for start in range(0, length, step))
