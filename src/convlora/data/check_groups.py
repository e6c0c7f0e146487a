"""Check of groups, such as the slices of a patient: they may not be in more than one split."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from convlora.data.groups import Grouping
from convlora.data.report import Problem, count
from convlora.data.source import error
from convlora.settings import as_typed


def check_groups(
    splits: Mapping[str, Sequence[Path]], group: Grouping, drawn: bool, expression: str, data: Path
) -> Iterator[Problem]:
    """Groups that are in more than one split.

    Args:
        splits: images of each split.
        group: of an image.
        drawn: whether a seed made the splits.
        expression: that the user gave.
        data: what the user calls DATA.
    """
    places: dict[str, Counter[str]] = {}
    first: dict[str, Path] = {}
    for split, images in splits.items():
        for image in images:
            name = group(image)
            places.setdefault(name, Counter())[split] += 1
            first.setdefault(name, image)
    fix = "Move all of its images into one split."
    if drawn:
        command = as_typed(["convlora", "convert", str(data), "--out", "NEW", "--group-by", expression])
        fix = f"Make splits of whole groups: {command}."
    for name, held in places.items():
        if len(held) > 1:
            listed = ", ".join(f"{count(n, 'image')} in {split}" for split, n in held.items())
            rule = "Images of one group belong in one split: else the scores are too good."
            yield error("group-in-splits", first[name], f"the group '{name}' has {listed}", rule, fix)
