"""Masks to ask for and the clicks and boxes that ask for them."""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from convlora.errors import DataError
from convlora.pretraining.shapes import Ids

Mask = NDArray[np.bool_]


def sample_masks(
    instances: Ids,
    coarse: Ids,
    rng: np.random.Generator,
    count: int,
    min_area: int = 20,
    coarse_share: float = 0.25,
) -> Mask:
    """Masks of a scene, without repeats, more likely the larger: in proportion to the root of the area.

    Args:
        instances: uint8 (H, W).
        coarse: uint8 (H, W); each draw is from this map with probability `coarse_share`.
        rng: source of randomness.
        count: masks wanted.
        min_area: pixels below which a mask is not drawn.
        coarse_share: see `coarse`.

    Returns:
        bool (M, H, W), M <= count; M < count where the scene has fewer masks, 0 where it has none.
    """
    fine, fine_odds = _candidates(instances, min_area)
    large, large_odds = _candidates(coarse, min_area)
    from_coarse = int(rng.binomial(count, coarse_share)) if len(fine) else count
    from_coarse = min(from_coarse, len(large))
    from_fine = min(count - from_coarse, len(fine))
    from_coarse = min(count - from_fine, len(large))
    chosen_fine = rng.choice(fine, from_fine, replace=False, p=fine_odds) if from_fine else fine[:0]
    chosen_large = rng.choice(large, from_coarse, replace=False, p=large_odds) if from_coarse else large[:0]
    masks = [instances[None] == chosen_fine[:, None, None], coarse[None] == chosen_large[:, None, None]]
    return rng.permutation(np.concatenate(masks), axis=0)


def _candidates(ids: Ids, min_area: int) -> tuple[Ids, NDArray[np.float64]]:
    area = np.bincount(ids.ravel(), minlength=256)
    area[0] = 0
    values = np.flatnonzero(area >= max(min_area, 1))
    odds = np.sqrt(area[values])
    return values.astype(np.uint8), odds / max(odds.sum(), 1.0)


def sample_click(mask: Mask, rng: np.random.Generator) -> NDArray[np.float32]:
    """Point (x, y), float32 (2,), at the centre of a pixel inside the mask.

    Half of the clicks are uniform over the mask, half near a centre: one of the pixels that are at least
    0.8 of the greatest depth away from the border of the mask.

    Raises:
        DataError: the mask is empty.
    """
    rows, columns, window = _crop(mask)
    inside = np.flatnonzero(window)
    if rng.random() < 0.5:
        depth = _depth(window).ravel()
        inside = np.flatnonzero(depth >= 0.8 * depth.max())
    row, column = divmod(int(inside[rng.integers(len(inside))]), window.shape[1])
    return np.array([columns + column + 0.5, rows + row + 0.5], np.float32)


def sample_box(mask: Mask, rng: np.random.Generator, jitter: float = 0.1) -> NDArray[np.float32]:
    """Box (x0, y0, x1, y1), float32 (4,), in pixel edges: it spans the mask exactly where `jitter` is 0.

    Args:
        mask: bool (H, W), not empty.
        rng: source of randomness.
        jitter: each edge moves by up to this share of the side, and stays within the image.

    Raises:
        DataError: the mask is empty.
    """
    rows, columns, window = _crop(mask)
    height, width = window.shape
    box = np.array([columns, rows, columns + width, rows + height], np.float32)
    shift = rng.uniform(-jitter, jitter, 4) * np.array([width, height, width, height])
    limit = np.array([mask.shape[1], mask.shape[0]] * 2)
    return np.clip(box + shift, 0, limit).astype(np.float32)


def _crop(mask: Mask) -> tuple[int, int, Mask]:
    """First row, first column and the window that holds all of the mask."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        raise DataError("got an empty mask; the rule is one pixel or more. Draw masks with sample_masks")
    return int(rows[0]), int(columns[0]), mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _depth(window: Mask) -> NDArray[np.float32]:
    """Distance to the border in pixels, on a grid of at most 64 a side for large masks."""
    stride = max(1, -(-max(window.shape) // 64))
    padded = np.pad(window[::stride, ::stride], 1)
    depth = ndimage.distance_transform_edt(padded)[1:-1, 1:-1]
    if stride == 1:
        return depth
    full = np.zeros(window.shape, np.float32)
    full[::stride, ::stride] = depth
    return full if full.any() else window.astype(np.float32)
