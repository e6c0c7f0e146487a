"""Colour masks: a palette says which class each colour is."""

import re
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from convlora.data.classes import check_names
from convlora.data.complaints import listening
from convlora.data.images import FileError, open_image, upright
from convlora.data.masks import IGNORE
from convlora.data.tiff import holds_numbers
from convlora.errors import DataError

FILE = "palette.txt"
RULE = "each line is 'R G B name' or '#rrggbb name', the class with id 0 first"
_IGNORED = frozenset({"ignore", "void"})
_LISTED = 20


@dataclass(frozen=True)
class Palette:
    """Colours of the classes.

    Args:
        source: file it was read from.
        colours: red, green, blue, each 0 to 255.
        ids: class id of each colour; several colours may share one, 255 is 'ignore'.
        classes: names, id 0 first.
    """

    source: Path
    colours: tuple[tuple[int, int, int], ...]
    ids: tuple[int, ...]
    classes: tuple[str, ...]

    def convert(self, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look up (H, W, 3) uint8 colours.

        Returns:
            (H, W) uint8 ids, and (H, W) bool: True where the colour is in the palette.
        """
        known = _codes(np.array(self.colours, np.uint8))
        order = np.argsort(known)
        codes = _codes(rgb)
        place = np.searchsorted(known[order], codes).clip(max=len(known) - 1)
        ids = np.array(self.ids, np.uint8)[order][place]
        return ids, known[order][place] == codes

    def nearest(self, colour: np.ndarray) -> tuple[tuple[int, int, int], float]:
        """Colour of the palette that is nearest to one (3,), and their distance in RGB."""
        apart = np.linalg.norm(np.array(self.colours, float) - colour.astype(float), axis=1)
        return self.colours[int(apart.argmin())], float(apart.min())

    def name(self, colour: tuple[int, int, int]) -> str:
        """Name of the class of a colour of the palette."""
        label = self.ids[self.colours.index(colour)]
        return "ignore" if label == IGNORE else self.classes[label]


def find_palette(folder: Path, given: Path | None) -> Palette | None:
    """The palette that was given, else `palette.txt` of the data folder, else None.

    Raises:
        DataError: see `read_palette`.
    """
    if given is not None:
        return read_palette(given)
    return read_palette(folder / FILE) if (folder / FILE).is_file() else None


def read_palette(file: Path) -> Palette:
    """Read a palette.

    A line's name decides its id: ids count the different names in their order. Lines with one name share an
    id, `ignore` and `void` become 255. Text from ' # ' on is a comment; empty lines are skipped.

    Raises:
        DataError: the file is missing or no UTF-8, a line has another form, or a colour comes twice.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"The palette {file} does not exist. It is a text file; {RULE}.") from error
    except IsADirectoryError as error:
        raise DataError(f"The palette {file} is a folder. It is a text file; {RULE}.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    seen: dict[tuple[int, int, int], int] = {}
    names: list[str] = []
    for number, line in enumerate(lines, start=1):
        text = re.split(r"\s# ", line, maxsplit=1)[0].strip()
        if not text:
            continue
        colour, name = _parse(text, f"{file}, line {number}")
        if colour in seen:
            raise DataError(
                f"{file}, line {number}: the colour {_show(colour)} was in line {seen[colour]} already. "
                "One colour is one class; remove one of the lines."
            )
        seen[colour] = number
        names.append(name)
    classes = tuple(dict.fromkeys(name for name in names if name.lower() not in _IGNORED))
    check_names(classes, file)
    ids = tuple(classes.index(name) if name in classes else IGNORE for name in names)
    return Palette(file, tuple(seen), ids, classes)


def colours_of(image: Image.Image, path: Path, palette: Palette) -> np.ndarray:
    """Class ids of a mask by its colours, as a viewer shows them; alpha is dropped, EXIF orientation applied.

    Indexed and grey masks are read by their colours too: what the palette says holds for every mask.

    Args:
        image: the mask, as `open_image` has decoded it.
        path: named in the error.
        palette: the id of each colour.

    Returns:
        (H, W) uint8; 255 is 'ignore'.

    Raises:
        FileError: it holds a colour that is not in the palette.
    """
    if holds_numbers(image):
        found = f"has one channel of numbers (mode {image.mode}), but {palette.source} tells colours"
        fix = (
            "Save the mask with its colours, or its numbers as an 8-bit PNG, which are greys to the palette "
            "(7 7 7 for 7); or leave out the palette if these are class ids."
        )
        raise FileError.about(path, found, fix, "unknown-colour")
    kind, image = image.format, upright(image)
    rgb = np.asarray(image.convert("RGB"))
    ids, known = palette.convert(rgb)
    if not known.all():
        raise FileError.about(path, _unknown(rgb[~known], palette), _fix(kind, image.mode), "unknown-colour")
    return ids


def count_colours(paths: Iterable[Path]) -> Counter[tuple[int, int, int]]:
    """Pixels of each colour over all masks that can be read."""

    def count(path: Path) -> Counter[tuple[int, int, int]]:
        try:
            codes = _codes(np.asarray(open_image(path).convert("RGB")))
        except FileError:
            return Counter()
        values, pixels = np.unique(codes, return_counts=True)
        return Counter(
            {
                (int(v) >> 16, int(v) >> 8 & 255, int(v) & 255): int(n)
                for v, n in zip(values, pixels, strict=True)
            }
        )

    total: Counter[tuple[int, int, int]] = Counter()
    with listening(), ThreadPoolExecutor() as pool:
        for counts in pool.map(count, paths):
            total.update(counts)
    return total


def draft(colours: Counter[tuple[int, int, int]]) -> str:
    """Text of a palette to fill in: the most frequent colours, at most 20, with their pixels."""
    lines = [
        f"{' '.join(map(str, colour))} class{number}  # {pixels} pixels"
        for number, (colour, pixels) in enumerate(colours.most_common(_LISTED))
    ]
    if len(colours) > _LISTED:
        lines.append(
            f"... and {len(colours) - _LISTED} more colours: check that no mask is a photograph or JPEG"
        )
    return "\n".join(lines)


def _parse(text: str, place: str) -> tuple[tuple[int, int, int], str]:
    if match := re.fullmatch(r"#([0-9a-fA-F]{6})[\s,]+(.*\S)", text):
        value = int(match[1], 16)
        return (value >> 16, value >> 8 & 255, value & 255), match[2]
    match = re.fullmatch(r"(\d+)[\s,]+(\d+)[\s,]+(\d+)[\s,]+(.*\S)", text)
    if not match:
        raise DataError(f"{place}: '{text}' is no line of a palette; {RULE}.")
    red, green, blue = (int(match[i]) for i in (1, 2, 3))
    if max(red, green, blue) > 255:
        raise DataError(f"{place}: {red} {green} {blue} is no colour; each of R G B is 0 to 255.")
    return (red, green, blue), match[4]


def _unknown(pixels: np.ndarray, palette: Palette) -> str:
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:5]
    parts = []
    for i in order:
        near, apart = palette.nearest(colours[i])
        parts.append(
            f"{_show(colours[i])} x {counts[i]} pixels (nearest: {_show(near)} {palette.name(near)}, "
            f"distance {apart:.1f})"
        )
    more = f" and {len(colours) - 5} more" if len(colours) > 5 else ""
    noun = "a colour" if len(colours) == 1 else f"{len(colours)} colours"
    return f"holds {noun} that {palette.source} does not name: {', '.join(parts)}{more}"


def _fix(kind: str | None, mode: str) -> str:
    if kind in {"JPEG", "MPO"}:
        return "JPEG changes colours: save the mask as PNG, from the original labels."
    fix = "Add a line for the colour to the palette (the name 'ignore' leaves it out), or correct the mask."
    if mode in {"P", "L", "1"}:
        fix += " If the mask holds class ids, not colours, leave out the palette."
    return fix


def _codes(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 as one number for each colour."""
    wide = rgb.astype(np.uint32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def _show(colour: Iterable[int]) -> str:
    return f"rgb({', '.join(str(int(c)) for c in colour)})"
