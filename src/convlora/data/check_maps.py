"""Checks of maps: pixels without data."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from convlora.data.labels import Label
from convlora.data.layout import Folder, pair_by_stem
from convlora.data.masks import IGNORE
from convlora.data.report import Problem
from convlora.data.scan import ImageFacts, MaskFacts
from convlora.data.source import warning


def check_maps(
    folders: Iterable[Folder], images: Mapping[Path, ImageFacts], masks: Mapping[Label, MaskFacts]
) -> Iterator[Problem]:
    """All that can be said of pairs by the tags of maps."""
    ignores = any(set(mask.counts) - {0, IGNORE} for mask in masks.values())  # else 255 is foreground
    for pair in (pair for folder in folders for pair in pair_by_stem(folder)):
        image, mask = images[pair.image], masks[pair.mask]
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
