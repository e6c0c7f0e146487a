"""A table of images and masks: a CSV file with the columns image, mask and, if wanted, split."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from convlora.data.check_folders import OTHER_NAMES
from convlora.data.labels import MaskFile
from convlora.data.layout import SPLITS, Folder, Pair, unique_stems
from convlora.data.report import Problem
from convlora.data.source import Source, error, is_there
from convlora.errors import DataError
from convlora.settings import near_hint

FILE = "data.csv"
_RULE = "A table has the columns image, mask and, if wanted, split; paths are from the table's folder."
_NEEDED, _OPTIONAL = ("image", "mask"), ("split",)
_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
_MEANT = {*_SPLIT_OF, *OTHER_NAMES}


@dataclass(frozen=True)
class _Row:
    line: int
    image: Path
    mask: Path
    split: str
    written: str  # the image as the table names it


def read_table(file: Path) -> Source:
    """Read a table; what is wrong with a row is a problem with its line number, the other rows go on.

    Raises:
        DataError: the file is no UTF-8 text, or a column is missing.
    """
    rows: list[_Row] = []
    problems: list[Problem] = []
    header, records = _parse(file)
    for line, cells in records:
        row = _read_row(file, line, header, cells)
        if isinstance(row, Problem):
            problems.append(row)
        else:
            rows.append(row)
    if not rows and not problems:
        raise DataError(f"{file} has no row below its header. {_RULE}")
    problems += _check_missing(file, rows)
    places = {f"{file}, line {row.line}": row.split for row in rows if row.split != "all"}
    rows = [row for row in rows if is_there(row.image) and is_there(row.mask)]
    problems += _check_repeated(file, rows)
    splits = "with a column split" if "split" in header else "without splits"
    layout = f"table {file.name}, {splits}"
    return Source(layout, file.parent, _folders(rows), problems=problems, places=places)


def _parse(file: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Names of the columns, and (line number, cells) of each row that is not empty."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = file.read_bytes()[: problem.start].count(b"\n") + 1
        raise DataError(
            f"{file}, line {line} is not UTF-8 text: {problem}. Save the table as UTF-8."
        ) from problem
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)  # Excel writes ';' in many countries
    # strict: else a quote that nobody closes, as of inches, swallows the rows below it without a word
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                records.append((reader.line_num, [cell.strip() for cell in cells]))
    except csv.Error as problem:
        start = records[-1][0] + 1 if records else 1
        raise DataError(
            f"{file}, line {reader.line_num} is not valid CSV: {problem}. The row begins at line {start} or "
            "below. A cell that begins with a quote must end with one; double the quotes within it."
        ) from problem
    if not records:
        raise DataError(f"{file} is empty. {_RULE}")
    header = [cell.lower() for cell in records[0][1]]
    _check_header(file, header)
    _check_meant_split(file, header, [cells for _, cells in records[1:]])
    return header, records[1:]


def _check_meant_split(file: Path, header: Sequence[str], rows: Sequence[list[str]]) -> None:
    """Splits in a column that is not read would be made anew at random, and test images trained on."""
    if "split" in header:
        return
    for column, name in enumerate(header):
        held = dict.fromkeys(cells[column] for cells in rows if cells[column : column + 1] not in ([], [""]))
        if name not in _NEEDED and held and all(cell.lower() in _MEANT for cell in held):
            listed = ", ".join([*held][:4])
            raise DataError(
                f"{file} has a column '{name}' that holds names of splits ({listed}), and no column 'split'. "
                f"Rename it 'split'; or remove it, if the splits are to be made at random. {_RULE}"
            )


def _check_header(file: Path, header: Sequence[str]) -> None:
    found = ", ".join(f"'{name}'" for name in header)
    twice = [name for name in (*_NEEDED, *_OPTIONAL) if header.count(name) > 1]
    if twice:
        raise DataError(f"{file} has the column '{twice[0]}' twice. {_RULE}")
    for name in _NEEDED:
        if name not in header:
            others = [other for other in header if other not in (*_NEEDED, *_OPTIONAL)]
            near = near_hint(name, others)
            hint = f"{near} Rename it '{name}'." if near else ""
            raise DataError(f"{file} has no column '{name}'; its first line holds {found}.{hint} {_RULE}")
    for other in header:
        # close enough for 'splits', not for 'site' and 'hospital'
        hint = near_hint(other, _OPTIONAL, cutoff=0.8)
        if hint and other not in (*_NEEDED, *_OPTIONAL):
            raise DataError(f"{file} has a column '{other}'.{hint} {_RULE}")


def _read_row(file: Path, line: int, header: list[str], cells: list[str]) -> _Row | Problem:
    place = f"{file}, line {line}"
    if len(cells) > len(header) and any(cells[len(header) :]):
        found = f"{len(cells)} cells, but {len(header)} columns"
        return error("bad-row", place, found, _RULE, "Put a name that holds the separator between quotes.")
    values = dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=False))
    for name in (*_NEEDED, *_OPTIONAL):
        if name in header and not values[name]:
            return error(
                "empty-cell", place, f"the cell '{name}' is empty", _RULE, "Fill it or remove the row."
            )
    split = values.get("split", "all")
    if "split" in header:
        if split.lower() not in _SPLIT_OF:
            rule = f"A split is one of {', '.join(SPLITS)} (also {', '.join(set(_SPLIT_OF) - set(SPLITS))})."
            return error("unknown-split", place, f"the split is '{split}'", rule, "Correct the cell.")
        split = _SPLIT_OF[split.lower()]
    image, mask = (file.parent / values[name] for name in _NEEDED)
    return _Row(line, image, mask, split, values["image"])


def _check_missing(file: Path, rows: Sequence[_Row]) -> Iterator[Problem]:
    for row in rows:
        for kind, path in (("image", row.image), ("mask", row.mask)):
            if not is_there(path):
                found = f"the {kind} {path} does not exist"
                slash = " Write / in place of \\." if "\\" in path.name else ""
                fix = f"Correct the name or remove the row.{slash}"
                yield error("missing-file", f"{file}, line {row.line}", found, _RULE, fix)


def _check_repeated(file: Path, rows: Sequence[_Row]) -> Iterator[Problem]:
    first: dict[tuple[str, Path], _Row] = {}
    for row in rows:
        for kind, path in (("image", row.image), ("mask", row.mask)):
            known = first.setdefault((kind, path.resolve()), row)
            if known is row:
                continue
            rule = f"Every {kind} may be in one row only."
            found = f"the {kind} {path.name} was in line {known.line} already"
            fix = "Remove one of the rows." if kind == "image" else "Give every image the mask of its own."
            yield error(f"repeated-{kind}", f"{file}, line {row.line}", found, rule, fix)
            break


def _folders(rows: Sequence[_Row]) -> list[Folder]:
    groups: dict[str, list[_Row]] = defaultdict(list)
    for row in rows:
        groups[row.split].append(row)
    folders = []
    for split in ("all", *SPLITS):
        if group := groups.get(split):
            stems = _stems(group)
            pairs = [Pair(s, row.image, MaskFile(row.mask)) for s, row in zip(stems, group, strict=True)]
            folders.append(Folder.of_pairs(split, sorted(pairs, key=lambda pair: pair.stem)))
    return folders or [Folder.of_pairs("all", [])]


def _stems(rows: Sequence[_Row]) -> list[str]:
    """Unique names of the rows' images; a repeated image, which is an error, must not end the reading."""
    try:
        return unique_stems([Path(row.written) for row in rows])
    except DataError:
        return [f"line{row.line}" for row in rows]
