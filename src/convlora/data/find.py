"""Tell which layout DATA has, and read it; where two would fit, neither is taken."""

from collections.abc import Callable
from pathlib import Path

from convlora.data.coco import find_coco, one_file, read_coco
from convlora.data.coco_file import BURN
from convlora.data.layout import LAYOUT_HELP, MASK_FOLDERS, find_folders
from convlora.data.source import Source
from convlora.data.tables import FILE, read_table
from convlora.data.yolo import find_yaml, has_paths, is_yolo, read_yolo
from convlora.errors import DataError

_READERS = ".csv (a table), .json (COCO) and .yaml (YOLO)"
_MAPS = {".geojson", ".shp", ".gpkg", ".kml", ".gml"}


def find_source(data: Path) -> Source:
    """Read what `data` is: a folder in one of the layouts, or a .csv, .json or .yaml.

    Raises:
        DataError: it does not exist, fits no layout, fits several, or cannot be read as the one it fits.
    """
    if data.is_file():
        return _read_file(data)
    if not data.is_dir():
        raise DataError(f"{data} is not a folder that exists. {LAYOUT_HELP}.")
    fits: dict[str, Callable[[], Source]] = {}
    if (data / FILE).is_file():
        fits[f"a table ({FILE})"] = lambda: read_table(data / FILE)
    if coco := find_coco(data):
        listed = next(iter(coco.values()))[0].relative_to(data)
        fits[f"COCO json ({listed})"] = lambda: read_coco(data, coco)
    yaml = find_yaml(data)
    masks = _has_mask_folders(data)
    if yaml is not None and (is_yolo(data) or (has_paths(yaml) and not masks)):
        fits[f"YOLO polygons ({yaml.name})"] = lambda: read_yolo(yaml)
    if masks:
        fits["folders of images and masks"] = lambda: _read_folders(data)
    if len(fits) > 1:
        raise DataError(
            f"{data} could be read as {' or as '.join(fits)}. Give the file that is meant ({_READERS}) in "
            "place of the folder, or move the other away."
        )
    return next(iter(fits.values()))() if fits else _read_folders(data)


def _read_file(file: Path) -> Source:
    kind = file.suffix.lower()
    if kind == ".csv":
        return read_table(file)
    if kind == ".json":
        return read_coco(file.parent, one_file(file))
    if kind in {".yaml", ".yml"}:
        return read_yolo(file)
    if kind in _MAPS:
        raise DataError(f"{file} is a map of shapes ({kind}). {BURN} {LAYOUT_HELP}.")
    raise DataError(f"{file} is a file, but none that data is read from: {_READERS}. {LAYOUT_HELP}.")


def _read_folders(root: Path) -> Source:
    try:
        folders = find_folders(root)
    except DataError as error:
        files = sorted([*root.glob("*.csv"), *root.glob("*.json")])
        maps = sorted(path for path in root.glob("*") if path.suffix.lower() in _MAPS)
        if maps:
            raise DataError(f"{error} {maps[0].name} is a map of shapes. {BURN}") from error
        if files:
            raise DataError(f"{error} If {files[0].name} tells the data, give {files[0]} as DATA.") from error
        raise
    if folders[0].split == "all":
        layout = "images and masks in folders, without splits"
    elif (root / "images").is_dir():
        layout = "images and masks in folders, splits inside"
    else:
        layout = "images and masks in the folders of the splits"
    return Source(layout, root, folders)


def _has_mask_folders(root: Path) -> bool:
    """Whether a folder called 'masks' is there, in any of the layouts of folders."""
    return any(path.is_dir() for path in (root / MASK_FOLDERS[0], *root.glob(f"*/{MASK_FOLDERS[0]}")))
