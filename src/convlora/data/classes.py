"""Names of the classes, id 0 first."""

import re
from collections.abc import Iterable
from pathlib import Path

from convlora.errors import ConfigError, DataError
from convlora.settings import parse_yaml


def read_class_names(root: Path) -> tuple[str, ...] | None:
    """Names from classes.txt (a line each, id 0 first) or data.yaml (`names`), or None.

    Raises:
        DataError: the file is not in that form.
    """
    if lines := read_class_lines(root):
        return lines
    for file in (root / "data.yaml", root / "data.yml"):
        if file.is_file():
            return check_names(names_in_yaml(read_mapping(file), file), file)
    return None


def read_class_lines(root: Path) -> tuple[str, ...] | None:
    """Names from classes.txt, or None.

    Raises:
        DataError: the file is not in that form.
    """
    file = root / "classes.txt"
    return check_names(_names_in_lines(file), file) if file.is_file() else None


def check_names(names: Iterable[object], source: Path | str) -> tuple[str, ...]:
    """Check that there are 2 to 255 different names.

    Raises:
        DataError: there are not.
    """
    listed = check_texts(names, source)
    twice = sorted({name for name in listed if listed.count(name) > 1})
    if twice:
        raise DataError(f"{source} names the class '{twice[0]}' more than once; names must differ.")
    if not 2 <= len(listed) <= 255:
        raise DataError(
            f"{source} names {len(listed)} classes; there must be 2 to 255, id 0 (often 'background') first."
        )
    return listed


def check_texts(names: Iterable[object], source: Path | str) -> tuple[str, ...]:
    """Names as texts, without blanks around them.

    Raises:
        DataError: one is empty, or no text.
    """
    names = list(names)
    odd = [n for n in names if isinstance(n, bool | dict | list) or n is None or not str(n).strip()]
    if odd:
        fix = "put it between quotes" if odd[0] != "" else "leave none empty"
        raise DataError(f"{source} names a class {odd[0]!r}. A name must be a text; {fix}.")
    return tuple(str(name).strip() for name in names)


def read_mapping(file: Path) -> dict[object, object]:
    """Read a YAML file of keys and values; another content gives an empty mapping.

    Raises:
        DataError: the file is not valid YAML, or has a key twice or an alias.
    """
    try:
        content = parse_yaml(file.read_text(encoding="utf-8-sig"), str(file))
    except ConfigError as error:
        raise DataError(str(error)) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    return content if isinstance(content, dict) else {}


def names_in_yaml(content: dict[object, object], file: Path) -> list[object]:
    """`names` of a data.yaml: a list, or a mapping from ids.

    Raises:
        DataError: it is neither, or `nc` is not their number.
    """
    names, said = content.get("names"), content.get("nc")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if isinstance(names, list):
        if said is not None and said != len(names):
            raise DataError(f"{file} has nc: {said}, but {len(names)} names. Correct one of them.")
        return names
    raise DataError(f"{file} must hold 'names': a list, or ids 0, 1, 2, ... with a name each.")


def _names_in_lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    if "" in lines and any(lines):
        raise DataError(
            f"{file}: line {lines.index('') + 1} is empty, and the line's place is the class's id. "
            "Name the class, or delete the line if no mask uses the id."
        )
    names = [line for line in lines if line]
    numbers = [re.match(r"(\d+)\s*[\s:;,.=)-]\s*\S", line) for line in names]
    if names and [int(n[1]) if n else None for n in numbers] in [[*range(k, len(names) + k)] for k in (0, 1)]:
        raise DataError(
            f"{file}: line 1 is '{names[0]}', but a line is a name alone, and its place is the class's id. "
            "Remove the numbers."
        )
    if len(names) == 1 and len(re.split(r"[,;\t]", names[0])) > 1:
        raise DataError(f"{file} has one line, '{names[0]}'; each line is one name. Write one name a line.")
    return names
