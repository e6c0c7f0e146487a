"""What is told of images beside their masks: parts that are not read, sizes unlike those of the training."""

from collections.abc import Sequence
from pathlib import Path

from convlora.data.formats import NOT_READ
from convlora.inference.tiles import Tiles

_LARGE = 2  # times the longest side of the largest training image


def unread_note(code: str, images: Sequence[Path]) -> str:
    """What `check` tells of each image, once for all: predicted images need not have been checked.

    Args:
        code: key of `NOT_READ`.
        images: of which such a part was not read.
    """
    found, rule, fix = NOT_READ[code]
    return f"{_and_more(images)}: {found}. {rule} {fix}"


def is_large(side: int, known: tuple[int, int] | None) -> bool:
    """Whether all looks much smaller in pictures of this side than in the training.

    Args:
        side: longest, in pixels, of what is scaled to the model's input at once.
        known: (H, W) of the largest training image; None where that is not recorded.
    """
    return known is not None and side > _LARGE * max(known)


def size_note(images: Sequence[Path], size: tuple[int, int], known: tuple[int, int]) -> str:
    """Tell once of images in which everything looks smaller to the model than in its training.

    Args:
        images: such ones.
        size: (H, W) of the first.
        known: see `is_large`.
    """
    return (
        f"{_and_more(images)}: {size[0]} x {size[1]} pixels were scaled to the model's input as a whole. "
        f"{_smaller(known)} cut it into tiles: --tile {max(known)} (in Python tile=)."
    )


def tile_note(tiles: Tiles | None, size: tuple[int, int], known: tuple[int, int] | None) -> str:
    """Tell of tiles so large that everything looks smaller in them than in the training; '' if it does not.

    Args:
        tiles: how images are cut, if they are.
        size: (H, W) of an image; one that is no larger than a tile is not cut.
        known: see `is_large`.
    """
    if tiles is None or known is None or not tiles.cut(size) or not is_large(tiles.side, known):
        return ""
    return (
        f"tiles of {tiles.side} x {tiles.side} pixels are scaled to the model's input. "
        f"{_smaller(known)} give smaller tiles: --tile {max(known)} (in Python tile=)."
    )


def system_note(images: Sequence[Path]) -> str:
    """Tell once of images that lie on a map of which nobody knows which."""
    return (
        f"{_and_more(images)}: no coordinate system, so the GeoTIFF has none: a world file does not tell it, "
        "and a .prj file beside the image is not read. Give it one: gdal_edit.py -a_srs EPSG:NUMBER NAME.tif."
    )


def _smaller(known: tuple[int, int]) -> str:
    return (
        f"The largest training image had {known[0]} x {known[1]}, so all looks smaller than in training. If "
        "pixels show as much of the world in both,"
    )


def _and_more(images: Sequence[Path]) -> str:
    return f"{images[0]}{f' and {len(images) - 1} more' if len(images) > 1 else ''}"
