"""One COCO annotation file: its images, categories and annotations; each problem with the annotation's id."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convlora.data.labels import Label
from convlora.data.masks import IGNORE
from convlora.data.raster import Shape, in_order, paint, parse_runs
from convlora.data.report import Problem
from convlora.data.source import error, no_area, warning
from convlora.errors import DataError

_FAR = 1e9  # no pixel is that far away; NaN is not below it either
#: What to do with polygons in coordinates of a map.
BURN = "Polygons on a map are not read: burn them into masks (docs/rearrange.md has the program)."
_KEYS = ("images", "annotations", "categories")


@dataclass(frozen=True)
class CocoLabel(Label):
    """The annotations of one image, painted when they are read.

    Args:
        file: annotation file.
        image: name of the image in it.
        size: (H, W) that the file gives the image.
        shapes: in the order of painting.
    """

    file: Path
    image: str
    size: tuple[int, int] = field(compare=False)
    shapes: tuple[Shape, ...] = field(compare=False, repr=False)

    @property
    def path(self) -> Path:
        """The annotation file."""
        return self.file

    @property
    def name(self) -> str:
        """Name of the image."""
        return self.image

    @property
    def stem(self) -> str:
        """Stem of the image."""
        return Path(self.image).stem

    def __str__(self) -> str:
        return f"{self.file}, image {self.image}"

    def read(self) -> np.ndarray:
        """See `Label.read`."""
        return paint(self.shapes, self.size)


class _BadError(Exception):
    """What is wrong with an annotation: code, found, rule, fix."""


class CocoFile:
    """A parsed annotation file.

    Args:
        file: the json.

    Raises:
        DataError: it is not COCO json.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        content = _load(file)
        self.problems: list[Problem] = []
        self.categories: dict[int, dict[str, Any]] = {}
        for category in content["categories"]:
            if not isinstance(_key(category, "id"), int) or category.get("name") is None:
                raise DataError(f"{file}: the category {category!r} has no whole 'id' or no 'name'.")
            if category["id"] in self.categories:
                raise DataError(f"{file}: two categories have the id {category['id']}. Ids must differ.")
            self.categories[category["id"]] = category
        self.names = {i: str(category["name"]).strip() for i, category in self.categories.items()}
        self.images = _images(file, content["images"])
        self.annotations: list[dict[str, Any]] = content["annotations"]
        self.used = {_key(a, "category_id") for a in self.annotations}

    def is_placeholder(self, category: int) -> bool:
        """Whether a category only stands for the group of the others, as the one with id 0 of Roboflow."""
        parents = {c.get("supercategory") for i, c in self.categories.items() if i != category}
        return category == 0 and self.names[category] in parents

    def labels(self, values: Mapping[int, int]) -> dict[str, CocoLabel]:
        """Label of every image by its name; problems are added to `problems`.

        Args:
            values: class id of each category.
        """
        shapes: dict[int, list[Shape]] = defaultdict(list)
        boxes: list[str] = []
        outside: list[str] = []
        flat: list[str] = []
        for index, annotation in enumerate(self.annotations):
            name = _name(annotation, index)
            try:
                image, shape = self._shape(annotation, values)
            except _BadError as bad:
                code, found, rule, fix = bad.args
                if code == "boxes":
                    boxes.append(name)
                else:
                    self.problems.append(error(code, f"{self.file}, {name}", found, rule, fix))
                continue
            shapes[image].append(shape)
            if _is_outside(shape, self.images[image][1]):
                outside.append(name)
            elif shape.area == 0:
                flat.append(name)
        self._tell(boxes, outside)
        self._tell_shares([shape for some in shapes.values() for shape in some])
        self._tell_repeated()
        if flat:
            self.problems.append(no_area(self.file, flat))
        return {
            name: CocoLabel(self.file, name, size, in_order(shapes.get(i, []), IGNORE))
            for i, (name, size) in self.images.items()
        }

    def _tell_shares(self, shapes: Sequence[Shape]) -> None:
        """Coordinates as shares of the image's size, as YOLO has them, would paint next to nothing."""
        polygons = [points for shape in shapes for points in shape.polygons]
        if polygons and all(points.min() >= 0 and points.max() <= 1 for points in polygons):
            found = f"all coordinates of its polygons ({len(polygons)}) are from 0 to 1"
            rule = "Coordinates of COCO are pixels, not shares of the image's size."
            fix = "Multiply each x by the image's width and each y by its height, or export the data again."
            self.problems.append(error("shares", self.file, found, rule, fix))

    def _tell_repeated(self) -> None:
        """Annotations with one id: two files may have been put together twice."""
        known = [
            a["id"] for a in self.annotations if isinstance(a, dict) and isinstance(a.get("id"), int | str)
        ]
        counts = Counter(known)
        twice = [str(i) for i, count in counts.items() if count > 1]
        if twice:
            found = f"{len(twice)} ids of annotations are there more than once, first {twice[0]}"
            rule = "Ids differ; all of them are painted."
            fix = "Look whether annotations were joined twice; else number them anew."
            self.problems.append(warning("repeated-id", str(self.file), found, rule, fix))

    def missing(self, name: str, places: Sequence[Path]) -> None:
        """Tell that an image is not there."""
        looked = ", ".join(str(place) for place in places if place.is_dir()) or "no folder that exists"
        rule = "Every image of the json must be there."
        slash = " Write / in place of \\." if "\\" in name else ""
        fix = f"Put it into {places[0]}, or remove it from the json.{slash}"
        found = f"the file does not exist; looked in {looked}"
        self.problems.append(error("missing-image", f"{self.file}, image {name}", found, rule, fix))

    def _shape(self, annotation: Any, values: Mapping[int, int]) -> tuple[int, Shape]:  # noqa: ANN401  # json
        fix = "Correct or remove the annotation."
        if not isinstance(annotation, dict):
            raise _BadError("bad-annotation", "it is no object", "COCO annotations have keys.", fix)
        image, category = _key(annotation, "image_id"), _key(annotation, "category_id")
        if image is None or image not in self.images:
            rule = "It must be the 'id' of one of the file's images."
            raise _BadError(
                "unknown-image", f"the image_id {annotation.get('image_id')!r} is of no image", rule, fix
            )
        if category is None or category not in values:
            known = ", ".join(f"{i} {self.names[i]}" for i in sorted(values))
            rule = f"The categories are {known}."
            raise _BadError(
                "unknown-category",
                f"the category_id {annotation.get('category_id')!r} is of no category",
                rule,
                fix,
            )
        crowd = annotation.get("iscrowd") == 1
        if not crowd and annotation.get("iscrowd") not in (0, None):
            found = f"iscrowd is {annotation['iscrowd']!r}"
            raise _BadError("bad-annotation", found, "It is 0, or 1 for a crowd, which is ignored.", fix)
        value = IGNORE if crowd else values[category]
        segmentation = annotation.get("segmentation")
        if not segmentation:
            raise _BadError("boxes", "", "", fix)
        if isinstance(segmentation, dict):
            return image, Shape(value, runs=_runs(segmentation, self.images[image][1], fix))
        return image, Shape(value, _polygons(segmentation, fix))

    def _tell(self, boxes: Sequence[str], outside: Sequence[str]) -> None:
        if boxes:
            found = f"{len(boxes)} annotations have no segmentation, first {boxes[0]}; boxes are not masks"
            rule = "Every annotation needs polygons or RLE in 'segmentation'."
            fix = "Export the data for instance segmentation, or remove these annotations."
            self.problems.append(error("boxes", self.file, found, rule, fix))
        if outside:
            listed = ", ".join(outside[:3]) + (f" and {len(outside) - 3} more" if len(outside) > 3 else "")
            rule = "What lies outside of the image is cut off."
            found = f"wholly outside of the image: {listed}"
            fix = "Compare the size of the images with the one they were labelled at."
            self.problems.append(warning("outside-image", self.file, found, rule, fix))


def _load(file: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as problem:  # also where it is no UTF-8, or a number has no end
        raise DataError(f"{file} is not valid JSON: {problem}. Export the annotations again.") from problem
    missing = [k for k in _KEYS if not isinstance(content, dict) or not isinstance(content.get(k), list)]
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        raise DataError(f"{file} is GeoJSON. {BURN}")
    if missing:
        raise DataError(
            f"{file} has no list '{missing[0]}'; it is not a COCO instances file. That holds 'images', "
            "'annotations' and 'categories'."
        )
    return content


def _images(file: Path, listed: Iterable[Any]) -> dict[int, tuple[str, tuple[int, int]]]:
    """Name and (H, W) of each image by its id."""
    images: dict[int, tuple[str, tuple[int, int]]] = {}
    names: set[str] = set()
    for image in listed:
        keys = ("id", "file_name", "height", "width")
        missing = [k for k in keys if not isinstance(image, dict) or image.get(k) is None]
        if missing:
            raise DataError(f"{file}: the image {image!r} has no '{missing[0]}'; each has {', '.join(keys)}.")
        height, width = image["height"], image["width"]
        if not isinstance(image["file_name"], str | int) or _key(image, "id") is None:
            raise DataError(f"{file}: the image {image!r} has no valid 'id' or 'file_name'. Correct it.")
        sizes = (height, width)
        if not all(
            isinstance(length, int) and not isinstance(length, bool) and length > 0 for length in sizes
        ):
            raise DataError(
                f"{file}: the image {image['file_name']} is {height!r} x {width!r}; sizes are pixels."
            )
        if height * width > 2 * (Image.MAX_IMAGE_PIXELS or height * width):
            raise DataError(
                f"{file}: the image {image['file_name']} is {height} x {width}, more than can be read. "
                "Correct its size, or cut it into tiles."
            )
        if image["id"] in images or str(image["file_name"]) in names:
            raise DataError(
                f"{file}: two images have the id {image['id']} or the name {image['file_name']}. "
                "Both must differ."
            )
        names.add(str(image["file_name"]))
        images[image["id"]] = (str(image["file_name"]), (height, width))
    return images


def _key(annotation: Any, key: str) -> Any:  # noqa: ANN401  # json
    """An id that may be looked up, or None."""
    value = annotation.get(key) if isinstance(annotation, dict) else None
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _name(annotation: Any, index: int) -> str:  # noqa: ANN401  # json
    known = isinstance(annotation, dict) and "id" in annotation
    return f"annotation {annotation['id']}" if known else f"annotation at place {index} (it has no id)"


def _polygons(segmentation: Any, fix: str) -> tuple[np.ndarray, ...]:  # noqa: ANN401  # json
    rule = "A polygon is a list x1, y1, x2, y2, ... of three points or more, in pixels."
    polygons = []
    if not isinstance(segmentation, list):
        raise _BadError("bad-polygon", "the segmentation is neither polygons nor RLE", rule, fix)
    for numbers in segmentation:
        if not isinstance(numbers, list) or not all(_is_number(number) for number in numbers):
            raise _BadError("bad-polygon", "a polygon holds something else than numbers", rule, fix)
        if len(numbers) % 2:
            raise _BadError("bad-polygon", f"a polygon has {len(numbers)} numbers, which is odd", rule, fix)
        if len(numbers) < 6:
            raise _BadError("bad-polygon", f"a polygon has {len(numbers) // 2} points", rule, fix)
        polygons.append(np.array(numbers, dtype=np.float64).reshape(-1, 2))
    return tuple(polygons)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _FAR


def _runs(rle: Mapping[str, Any], size: tuple[int, int], fix: str) -> np.ndarray:
    rule = "RLE has 'size' [height, width] of the image and 'counts' that add up to its pixels."
    counts = rle.get("counts")
    try:
        runs = parse_runs(counts) if isinstance(counts, str) else np.array(counts, dtype=np.int64)
    except (ValueError, TypeError, OverflowError) as problem:
        raise _BadError("bad-rle", f"the counts cannot be read: {problem}", rule, fix) from problem
    if rle.get("size") != list(size):
        found = f"the RLE is of the size {rle.get('size')}, the image is {list(size)}"
        raise _BadError("bad-rle", found, rule, fix)
    if runs.ndim != 1 or (runs < 0).any() or runs.sum() != size[0] * size[1]:
        found = (
            f"the counts add up to {runs.sum()}, or are no lengths; the image has {size[0] * size[1]} pixels"
        )
        raise _BadError("bad-rle", found, rule, fix)
    return runs


def _is_outside(shape: Shape, size: tuple[int, int]) -> bool:
    if not shape.polygons:
        return False
    points = np.concatenate(shape.polygons)
    low, high = points.min(axis=0), points.max(axis=0)
    return bool((high <= 0).any() or low[0] >= size[1] or low[1] >= size[0])
