"""Masks drawn over images, for people to look at."""

import numpy as np
from PIL import Image

from convlora.data.images import to_float

#: Colours of the classes, by id (Okabe and Ito's, told apart by most people, then some more).
PALETTE = np.array(
    [
        [128, 128, 128],
        [230, 159, 0],
        [86, 180, 233],
        [0, 158, 115],
        [240, 228, 66],
        [0, 114, 178],
        [213, 94, 0],
        [204, 121, 167],
        [148, 103, 189],
        [188, 189, 34],
        [23, 190, 207],
        [227, 119, 194],
    ],
    dtype=np.float32,
)


#: Pixels that are drawn at once: the numbers for them stay in the processor's cache.
_AT_ONCE = 2**16


def overlay(image: np.ndarray, ids: np.ndarray, drawn: tuple[int, ...], strength: float = 0.5) -> np.ndarray:
    """Tint the pixels of the drawn classes and outline them.

    Args:
        image: (H, W, 3), uint8 or float in [0, 1].
        ids: (H, W) uint8 class ids; 255 is left as it is.
        drawn: class ids to draw.
        strength: share of the colour, 0 to 1.

    Returns:
        (H, W, 3) uint8.
    """
    if image.dtype == np.uint8:
        return _overlay_bytes(image, ids, _mixtures(drawn, strength))
    values = image.astype(np.float32) * 255
    share, colours = (part[_edges(ids).astype(int), ids] for part in _shares(drawn, strength))
    return (values * (1 - share) + colours * share).round().clip(0, 255).astype(np.uint8)


def _shares(drawn: tuple[int, ...], strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Share of the colour, (2, 256, 1), and the colour, (2, 256, 3): inside and at an edge, by id."""
    shares = np.zeros((2, 256, 1))
    shares[0, list(drawn)], shares[1, list(drawn)] = strength, 1
    return shares, np.broadcast_to(PALETTE[np.arange(256) % len(PALETTE)], (2, 256, 3))


def _mixtures(drawn: tuple[int, ...], strength: float) -> np.ndarray:
    """Every pixel value mixed with every colour, (2, 256, 3, 256) uint8: by edge, id, channel and value."""
    share, colours = (part[..., None] for part in _shares(drawn, strength))
    values = to_float(np.arange(256, dtype=np.uint8)) * 255
    return (values * (1 - share) + colours * share).round().clip(0, 255).astype(np.uint8)


def _overlay_bytes(image: np.ndarray, ids: np.ndarray, mixtures: np.ndarray) -> np.ndarray:
    """Look the mixtures up, some rows at a time: a large image then needs no more than its own size."""
    picture = np.empty((*ids.shape, 3), np.uint8)
    channels = np.arange(3) * 256
    step = max(1, _AT_ONCE // ids.shape[1])
    for top in range(0, len(ids), step):
        rows = slice(top, top + step)
        edges = _edges(ids[top : top + step + 1])[:step]  # an edge is seen from the row above it
        places = (ids[rows] + 256 * edges)[..., None] * (3 * 256) + channels + image[rows]
        np.take(mixtures.ravel(), places, out=picture[rows], mode="clip")  # the mode that does not buffer
    return picture


def side_by_side(pictures: list[np.ndarray], gap: int = 4, min_height: int = 0) -> Image.Image:
    """Join pictures (H, W, 3) uint8 of one height, enlarged by a whole factor to at least `min_height`."""
    factor = max(1, -(-min_height // pictures[0].shape[0]))
    enlarged = [p.repeat(factor, axis=0).repeat(factor, axis=1) for p in pictures]
    space = np.full((enlarged[0].shape[0], gap, 3), 255, np.uint8)
    parts = [part for picture in enlarged for part in (space, picture)][1:]
    return Image.fromarray(np.concatenate(parts, axis=1))


def stack_rows(rows: list[Image.Image], gap: int = 4) -> Image.Image:
    """Stack pictures, padded with white to the widest."""
    width = max(row.width for row in rows)
    sheet = Image.new("RGB", (width, sum(row.height + gap for row in rows) - gap), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + gap
    return sheet


def _edges(ids: np.ndarray) -> np.ndarray:
    """Pixels whose right or lower neighbour has another id."""
    edges = np.zeros(ids.shape, bool)
    edges[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    edges[:-1] |= ids[:-1] != ids[1:]
    return edges


def comparison(
    image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, drawn: tuple[int, ...]
) -> Image.Image:
    """Picture of image | truth | prediction; arguments as in `overlay`."""
    plain = (image * 255).round().clip(0, 255).astype(np.uint8)
    return side_by_side(
        [plain, overlay(image, truth, drawn), overlay(image, predicted, drawn)], min_height=256
    )
