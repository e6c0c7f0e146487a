"""YOLO polygons: data.yaml, images, and a text file of polygons for each image."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from convlora.data.check_folders import PICTURES
from convlora.data.classes import check_names, check_texts, names_in_yaml, read_mapping
from convlora.data.images import EXTENSIONS, FileError, displayed_size, is_image, open_image
from convlora.data.labels import Label
from convlora.data.layout import SPLITS, Folder, Pair, unique_stems
from convlora.data.masks import IGNORE
from convlora.data.raster import Shape, in_order, paint, polygon_area
from convlora.data.report import Problem, count
from convlora.data.source import Source, error, is_there, no_area, warning, with_background
from convlora.errors import DataError

NAMES = ("data.yaml", "data.yml")
_RULE = "A line is 'class x1 y1 x2 y2 x3 y3 ...': a polygon, in parts of the image's width and height."
_LAYOUT = (
    "YOLO data is {train,val,test}/{images,labels} or {images,labels}/{train,val,test}, with a data.yaml"
)
_SLACK = 1e-4  # exporters round
_KEYS = {name: split for split, names in SPLITS.items() for name in names}
BAD_LINE = "label-line"  # code of a bad line met by `read`; `read_yolo` has told each of them


@dataclass(frozen=True)
class _Fault:
    """What is wrong with a line."""

    found: str
    is_box: bool = False  # class and four numbers


@dataclass(frozen=True)
class YoloLabel(Label):
    """The polygons of one image, painted when they are read; without a file, nothing is labelled.

    Args:
        file: text file.
        image: its image, whose size they are of.
        classes: number of classes, without the background.
    """

    file: Path
    image: Path
    classes: int

    @property
    def path(self) -> Path:
        """The text file."""
        return self.file

    def read(self) -> np.ndarray:
        """See `Label.read`."""
        try:
            height, width = _size(self.image)
        except FileError as error:  # told of the image
            raise FileError.about(self.file, "is of an image that cannot be read", "", BAD_LINE) from error
        shapes = []
        for line, text in _lines(self.file):
            parsed = _parse(text, self.classes)
            if isinstance(parsed, _Fault):
                raise FileError.about(self.file, f"line {line}: {parsed.found}", _RULE, BAD_LINE)
            value, points = parsed
            shapes.append(Shape(value, (points * (width, height),)))
        return paint(in_order(shapes, IGNORE), (height, width))


def find_yaml(root: Path) -> Path | None:
    """The data.yaml of a YOLO data set in this folder, or None."""
    return next((root / name for name in NAMES if (root / name).is_file()), None)


def is_yolo(root: Path) -> bool:
    """Whether a folder holds data.yaml together with label texts."""
    if find_yaml(root) is None:
        return False
    places = [root / "labels", *(root / name / "labels" for name in _KEYS)]
    return any(next(place.rglob("*.txt"), None) is not None for place in places if place.is_dir())


def has_paths(file: Path) -> bool:
    """Whether a data.yaml says where the images of a split are."""
    return any(key in _KEYS for key in read_mapping(file))


def read_yolo(file: Path) -> Source:
    """Read a YOLO data set from its data.yaml; class k of the labels becomes id k + 1.

    Raises:
        DataError: data.yaml lacks names, or names folders that do not exist.
    """
    content = read_mapping(file)
    names = check_texts(names_in_yaml(content, file), file)
    classes = check_names(with_background(names, file), file)
    problems: list[Problem] = list(_check_path(file, content))
    folders = []
    for split, places in _splits(file, content).items():
        problems += [problem for place in places for problem in _check_unread(place)]
        found = [(place, image) for place in places for image in _images(place)]
        stems = unique_stems([_below(image, place) for place, image in found])
        pairs = [
            Pair(stem, image, YoloLabel(_label_file(image), image, len(names)))
            for stem, (_, image) in zip(stems, found, strict=True)
        ]
        folders.append(Folder.of_pairs(split, sorted(pairs, key=lambda pair: pair.stem)))
        problems += _check_labels(split, pairs, names)
    classes_said = f"{len(names)} class{'' if len(names) == 1 else 'es'}"
    return Source(
        f"YOLO polygons, {classes_said}", file.parent, folders, classes, shapes=True, problems=problems
    )


def _check_path(file: Path, content: dict[object, object]) -> Iterator[Problem]:
    path = content.get("path")
    if path and not (isinstance(path, str) and (file.parent / path).is_dir()):
        found = f"path is {path!r}, which is no folder that exists from here"
        rule = "'path' is where the folders of the splits are, from the folder of data.yaml."
        fix = "Correct it, or remove it: the folders beside data.yaml are taken."
        yield warning("yolo-path", str(file), found, rule, fix)


def _check_unread(place: Path) -> Iterator[Problem]:
    """Pictures in formats that are not read."""
    if place.is_dir():
        for path in sorted(place.rglob("*")):
            ending = path.suffix.lower().lstrip(".")
            if ending in PICTURES and path.is_file() and not path.name.startswith("."):
                rule = f"Read are {', '.join(sorted(EXTENSIONS))}."
                yield error(
                    "unread-format", str(path), f"files .{ending} are not read", rule, "Save it as PNG."
                )


def _splits(file: Path, content: dict[object, object]) -> dict[str, list[Path]]:
    """Image folders and lists of each split: as data.yaml says, else those of the two usual layouts."""
    base = file.parent
    if isinstance(content.get("path"), str) and (base / str(content["path"])).is_dir():
        base = base / str(content["path"])
    said: dict[str, list[Path]] = {}
    for key, split in _KEYS.items():
        given = content.get(key) or []
        for item in given if isinstance(given, list) else [given]:
            said.setdefault(split, []).append(_place(file, base, key, str(item)))
    if said:
        return said
    for key, split in _KEYS.items():
        for place in (base / key / "images", base / "images" / key):
            if place.is_dir():
                said.setdefault(split, []).append(place)
    if not said and (base / "images").is_dir():
        said["all"] = [base / "images"]
    if not said:
        raise DataError(f"{file} names no folder of images, and none is beside it. {_LAYOUT}.")
    return said


def _place(file: Path, base: Path, key: str, item: str) -> Path:
    """A folder or list that data.yaml names; Roboflow writes ../train/images for train/images."""
    choices = [base / item, file.parent / item, base / item.removeprefix("../")]
    found = next((path for path in choices if path.exists()), None)
    if found is None:
        raise DataError(
            f"{file}: {key} is '{item}', but {choices[0]} does not exist. Paths are from 'path', or from the "
            f"folder of data.yaml. {_LAYOUT}."
        )
    return found


def _images(place: Path) -> Iterator[Path]:
    """Images of a folder with its sub-folders, or those that a text file lists."""
    if place.is_dir():
        found = (p for p in place.rglob("*") if p.is_file() and is_image(p))
        yield from sorted(p for p in found if not p.name.startswith("."))  # systems leave ._NAME.png behind
        return
    for line, text in _lines(place):
        path = place.parent / text
        if not is_there(path):
            raise DataError(
                f"{place}, line {line}: the image {path} does not exist. Correct or remove the line."
            )
        yield path


def _below(image: Path, place: Path) -> Path:
    return image.relative_to(place) if image.is_relative_to(place) else image


def _label_file(image: Path) -> Path:
    """The label is where the image is, with 'labels' for the last folder 'images' of the path."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _size(image: Path) -> tuple[int, int]:
    """(H, W) as shown, from the head of the file."""
    try:
        with Image.open(image) as opened:
            return displayed_size(opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return displayed_size(open_image(image))  # raises with the reason


def _lines(file: Path) -> list[tuple[int, str]]:
    """Numbered lines that are not empty; none where the file does not exist."""
    if not file.is_file():
        return []
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise FileError.about(file, f"is not UTF-8 text ({problem})", "Save it as UTF-8.") from problem
    return [(i, line.strip()) for i, line in enumerate(text.splitlines(), start=1) if line.strip()]


def _parse(text: str, classes: int) -> tuple[int, np.ndarray] | _Fault:
    """Class id and (N, 2) points from 0 to 1, or what is wrong with the line."""
    words = text.split()
    numbers = []
    for word in words[1:]:
        try:
            numbers.append(float(word))
        except ValueError:
            return _Fault(f"'{word}' is no number")
    if not re.fullmatch(r"\d+", words[0]):
        return _Fault(f"the class is '{words[0]}', which is no whole number")
    if len(words[0]) > 9 or int(words[0]) >= classes:
        return _Fault(f"the class is {words[0][:20]}, but data.yaml names 0 to {classes - 1}")
    if len(numbers) % 2:
        return _Fault(f"{len(numbers)} coordinates, which is an odd number")
    if len(numbers) == 4:
        return _Fault("class and four numbers are a box; boxes are not masks", is_box=True)
    if len(numbers) < 6:
        return _Fault(f"{len(numbers) // 2} points; a polygon has three or more")
    outside = [n for n in numbers if not -_SLACK <= n <= 1 + _SLACK or math.isnan(n)]
    if outside:
        return _Fault(f"the coordinate {outside[0]:g} is not between 0 and 1")
    return int(words[0]) + 1, np.array(numbers).clip(0, 1).reshape(-1, 2)


def _check_labels(split: str, pairs: Sequence[Pair], names: Sequence[str]) -> Iterator[Problem]:
    missing = [pair for pair in pairs if not pair.mask.path.is_file()]
    if pairs and len(missing) == len(pairs):
        found = f"none of the {len(pairs)} images has a label file; {missing[0].mask.path} does not exist"
        fix = "Put NAME.txt into the folder 'labels' that stands beside 'images'."
        yield error("missing-labels", split, found, _LAYOUT + ".", fix)
    elif missing:
        found = f"{len(missing)} of {len(pairs)} images have no label file, first {missing[0].image.name}"
        rule = "An image without one counts as empty: all background."
        yield warning("missing-labels", split, found, rule, "Fine if nothing is in these images.")
    for pair in pairs:
        yield from _check_file(pair.mask.path, names)
    yield from _check_unused({pair.mask.path for pair in pairs})


def _check_unused(used: set[Path]) -> Iterator[Problem]:
    """Label files that no image has."""
    for folder in sorted({path.parent for path in used}):
        lost = sorted(p for p in folder.glob("*.txt") if p not in used and p.name != "classes.txt")
        if lost:
            found = f"{count(len(lost), 'label file')} without an image"
            rule = "NAME.txt is the label of the image NAME."
            fix = "Add the image, or move the label away."
            yield warning("unused-labels", lost[0], f"{found}, this is the first", rule, fix)


def _check_file(file: Path, names: Sequence[str]) -> Iterator[Problem]:
    """Problems by line; boxes, which are usually all lines of a file, once."""
    fix = "Correct or remove the line."
    boxes: list[int] = []
    flat: list[str] = []
    try:
        lines = _lines(file)
    except FileError:
        return  # the scan of all labels tells it
    for line, text in lines:
        parsed = _parse(text, len(names))
        if isinstance(parsed, _Fault) and parsed.is_box:
            boxes.append(line)
        elif isinstance(parsed, _Fault):
            yield error("bad-label", f"{file}, line {line}", parsed.found, _RULE, fix)
        elif polygon_area(parsed[1]) == 0:
            flat.append(f"line {line}")
    if flat:
        yield no_area(file, flat)
    if boxes:
        found = f"{len(boxes)} of {len(lines)} lines hold class and four numbers: boxes are not masks"
        fix = "Export the data for segmentation (polygons)."
        yield error("boxes", f"{file}, line {boxes[0]}", found, _RULE, fix)
