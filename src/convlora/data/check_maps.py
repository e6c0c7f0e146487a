"""Checks of maps: pixels without data, and masks that lie elsewhere than their images."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from convlora.data.labels import Label
from convlora.data.layout import Folder, pair_by_stem
from convlora.data.masks import IGNORE
from convlora.data.report import Problem
from convlora.data.scan import ImageFacts, MaskFacts
from convlora.data.source import warning

_FAR = 0.75  # pixels: more than from the corner of a pixel to its middle


def check_maps(
    folders: Iterable[Folder], images: Mapping[Path, ImageFacts], masks: Mapping[Label, MaskFacts]
) -> Iterator[Problem]:
    """All that can be said of pairs by the tags of maps."""
    ignores = any(set(mask.counts) - {0, IGNORE} for mask in masks.values())  # else 255 is foreground
    for pair in (pair for folder in folders for pair in pair_by_stem(folder)):
        image, mask = images[pair.image], masks[pair.mask]
        if not (image.error or mask.error) and image.size == mask.size:
            yield from _check_place(image, mask)
        if not image.error:
            yield from _check_no_data(image, mask.counts.get(IGNORE, 0) if ignores else 0)


def _check_no_data(image: ImageFacts, ignored: int) -> Iterator[Problem]:
    """Tell of pixels without data, but where the mask ignores as many."""
    if not image.size or image.empty <= ignored:
        return
    share = 100 * image.empty / (image.size[0] * image.size[1])
    found = f"{share:.3g} % of its pixels hold what the file declares as 'no data' (GDAL_NODATA)"
    rule = "Pixels without data are trained and scored as what the mask says there."
    fix = "Give them 'ignore' (255) in the mask: docs/rearrange.md has the program."
    yield warning("no-data", image.path, found, rule, fix)


def _check_place(image: ImageFacts, mask: MaskFacts) -> Iterator[Problem]:
    """Pairs are made by name, so one of a neighbour under the same name would be learnt."""
    if image.place is None or mask.place is None or image.size is None:
        return
    here, there = image.place.system, mask.place.system
    if here and there and here != there:
        found = f"is in EPSG:{there}, but its image in EPSG:{here}"
    elif (away := image.place.pixels_to(mask.place, image.size)) >= _FAR:
        found = f"lies elsewhere on the map than its image: corners are {away:.3g} pixels apart"
    else:
        return
    rule = "Images and masks are laid on each other pixel by pixel; their places on the map are not used."
    fix = "Look at the pair; if the mask is of another place, export it again with the extent of the image."
    yield warning("map-position", mask.label, found, rule, fix)
