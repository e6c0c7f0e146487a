"""Groups of images that belong in one split, such as slices of a patient: found in their names."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from convlora.errors import ConfigError, DataError

_ORDERS = 200  # the nearest of so many; of 30 images of one patient and 6 of others the first may train on 5
_NAMED = 4

#: Group of an image.
Grouping = Callable[[Path], str]


def grouping(data: Path, pattern: object) -> Grouping:
    r"""What a regular expression finds in the name of an image, below `data`; of a part in brackets, that.

    Args:
        data: what the user calls DATA.
        pattern: regular expression, such as `patient(\d+)`.

    Raises:
        ConfigError: `pattern` is no regular expression; or, from what is returned, it does not fit an image.
    """
    if not isinstance(pattern, str):
        raise ConfigError(f"group_by is {pattern!r}, which is no regular expression: it is no text.")
    try:
        found_by = re.compile(pattern)
    except re.error as problem:
        raise ConfigError(f"group_by is {pattern!r}, which is no regular expression: {problem}.") from problem
    root = data if data.is_dir() else data.parent

    def group(image: Path) -> str:
        name = (image.relative_to(root) if image.is_relative_to(root) else image).as_posix()
        found = found_by.search(name)
        if found is None:
            raise ConfigError(
                f"group_by is {pattern!r}, of which nothing is in the name {name}. It must fit every image."
            )
        return next((part for part in found.groups() if part is not None), found[0])

    return group


def place_groups(groups: Sequence[str], sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, str]:
    """Group -> split: of 200 random orders the one that comes nearest to the sizes; no split stays empty.

    Args:
        groups: of each image.
        sizes: images that each split should have.
        rng: draws the orders.

    Raises:
        DataError: there are fewer groups than splits.
    """
    members = Counter(groups)
    names = sorted(members)
    if len(names) < len(sizes):
        raise DataError(
            f"The groups of the {len(groups)} images are {', '.join(names)}; at least 3 are needed, one each "
            "for training, validation and test."
        )
    best, nearest = dict[str, str](), -1
    for _ in range(_ORDERS):
        place, away = _place([names[i] for i in rng.permutation(len(names))], members, sizes)
        if not best or away < nearest:
            best, nearest = place, away
        if not nearest:
            break
    return best


def _place(
    order: Sequence[str], members: Mapping[str, int], sizes: Mapping[str, int]
) -> tuple[dict[str, str], int]:
    """Each group into the split with the most room; and by how many images the sizes are missed."""
    room, place = dict(sizes), dict[str, str]()
    for done, name in enumerate(order):
        empty = [split for split in room if split not in place.values()]
        choice = empty if len(order) - done <= len(empty) else list(room)
        split = max(choice, key=lambda other: room[other])
        place[name] = split
        room[split] -= members[name]
    return place, sum(map(abs, room.values()))


def tell_groups(splits: Mapping[str, Sequence[Path]], group: Grouping) -> str:
    """How many groups each split has, and some of them by name: a wrong expression shows in these.

    Args:
        splits: images of each split.
        group: of an image.
    """
    told = []
    for split, images in splits.items():
        names = list(dict.fromkeys(map(group, images)))
        if not names:
            continue
        more = ", ..." if len(names) > _NAMED else ""
        told.append(f"{len(names)} in {split} ({', '.join(names[:_NAMED])}{more})")
    return ", ".join(told)
