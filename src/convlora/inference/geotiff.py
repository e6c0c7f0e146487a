"""Masks as GeoTIFF, where the image lies on the map; with rasterio, an optional dependency."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convlora.data.images import FileError, orientation
from convlora.data.masks import colours
from convlora.errors import MissingExtraError

_FIX = "Leave out --geotiff for it."
_SIDE = 512  # pixels, from which on programs like to read tiles


@dataclass(frozen=True)
class Georeference:
    """Where an image lies: an affine transform or ground control points, and the CRS of either, if any."""

    crs: Any  # rasterio's
    transform: Any | None
    points: tuple[Any, ...]


def check_rasterio() -> None:
    """Check that GeoTIFFs can be written.

    Raises:
        MissingExtraError: rasterio is not installed.
    """
    try:
        import rasterio  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("predict --geotiff", "geo", "rasterio") from error


def read_georeferences(images: Iterable[Path]) -> dict[Path, Georeference]:
    """Where images lie, by the file or the world file beside it; those of which nothing tells are left out.

    To be called in the main thread, as it changes the warnings' filters for a while.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        for image in images:
            try:
                with rasterio.open(image) as file:
                    points, crs_of_points = file.gcps
                    transform = None if file.transform.is_identity else file.transform
                    crs = file.crs if transform is not None else crs_of_points
                    if transform is not None or points:
                        found[image] = Georeference(crs, transform, () if transform else tuple(points))
            except RasterioIOError:
                continue  # no picture, which reading it will tell, or of a format that GDAL was built without
    return found


def check_georeference(path: Path, image: Image.Image, place: Georeference | None) -> None:
    """Check that the mask of an image can be put on the map.

    Raises:
        FileError: it is not told where the image lies, or its pixels are shown in another order than stored.
    """
    if place is None:
        found = (
            "has no georeference: neither an affine transform nor ground control points, in it or beside it"
        )
        raise FileError.about(path, found, _FIX, "no-georeference")
    if orientation(image) != 1:
        found = "is turned by its orientation tag, so its georeference does not fit the mask"
        raise FileError.about(path, found, _FIX, "no-georeference")


def save_geotiff(file: Path, ids: np.ndarray, place: Georeference) -> None:
    """Write class ids (H, W) uint8 with the colours of `save_mask` and the georeference of the image."""
    from rasterio.crs import CRS
    from rasterio.io import MemoryFile

    options: dict[str, Any] = {"compress": "deflate", "bigtiff": "if_safer", "tiled": max(ids.shape) > _SIDE}
    if place.transform is None:
        options |= {"gcps": list(place.points), "crs": place.crs or CRS()}  # points need one, if an empty one
    else:
        options |= {"transform": place.transform, "crs": place.crs}
    height, width = ids.shape
    # through memory: GDAL only logs what goes wrong when it closes a file, such as a full disk
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", height=height, width=width, count=1, dtype="uint8", **options
        ) as written:
            written.write(ids, 1)
            written.write_colormap(1, dict(enumerate(colours())))
        file.write_bytes(memory.read())
