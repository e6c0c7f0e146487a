"""The commands of data as functions: check, convert. No torch is loaded."""

from collections.abc import Sequence
from pathlib import Path

from convlora.arguments import as_names, as_optional_path, as_path
from convlora.data.check import Report, check_dataset
from convlora.data.convert import Converted, convert_dataset


def check(
    data: str | Path,
    *,
    classes: Sequence[str] | None = None,
    palette: str | Path | None = None,
    group_by: str | None = None,
) -> Report:
    """Find every problem in a data set; the Python form of `convlora check`.

    Args:
        data: folder with images and masks; or a .csv, COCO .json or YOLO data.yaml.
        classes: class names, id 0 first; by default those of the data.
        palette: colours of the classes, for colour masks.
        group_by: regular expression; images in whose names it finds the same must be in one split.

    Returns:
        The report: `ok`, `problems`, `statistics`, `to_text()`, `to_json()`. What is wrong in the data is in
        it, and raises nothing.

    Raises:
        ConfigError: an argument is not valid.
    """
    colours = as_optional_path(palette, "palette")
    return check_dataset(as_path(data, "data"), as_names(classes), palette=colours, group_by=group_by)


def convert(
    data: str | Path,
    out: str | Path,
    *,
    classes: Sequence[str] | None = None,
    palette: str | Path | None = None,
    seed: int = 0,
    group_by: str | None = None,
    tile: int | None = None,
) -> Converted:
    """Write a data set as folders with masks of class ids; the Python form of `convlora convert`.

    Args:
        data: see `check`, as classes and palette.
        out: new or empty folder.
        classes: see there.
        palette: see there.
        seed: of the split, where the data has none.
        group_by: regular expression; images in whose names it finds the same stay in one split.
        tile: cut larger images into tiles of this side, in pixels.

    Returns:
        `counts` (images by split), `classes`, `left_out` (tiles with nothing to learn), `warnings`, `notes`.

    Raises:
        ConvLoraError: an argument is not valid, the data has errors, or `out` cannot be written.
    """
    return convert_dataset(
        as_path(data, "data"),
        as_path(out, "out"),
        classes=as_names(classes),
        palette=as_optional_path(palette, "palette"),
        split_seed=seed,
        group_by=group_by,
        tile=tile,
    )
