"""Where one split is scored, faults of the others are no obstacle: they become warnings."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from convlora.data.layout import Folder, Pair
from convlora.data.report import Problem, shown_file


def only_split(
    problems: Iterable[Problem],
    scored: str,
    folders: Iterable[Folder],
    pairs: Mapping[str, Iterable[Pair]],
    places: Mapping[str, str],
) -> Iterator[Problem]:
    """Errors of files of other splits, and pictures in two splits, as warnings; all else as it is.

    Args:
        problems: of all splits.
        scored: the split that is needed.
        folders: as they were found.
        pairs: of each split, also where it was made by a seed.
        places: split of further places that problems name, such as rows of a table.
    """
    files: dict[str, set[str]] = {}
    for folder in folders:
        if folder.split != "all":
            labels = [name for label in folder.masks for name in (label, label.path)]
            for file in (*folder.images, *labels, *folder.others, *filter(None, [folder.place])):
                files.setdefault(shown_file(file), set()).add(folder.split)
    for split, found in pairs.items():
        for pair in found:
            for file in (pair.image, pair.mask):
                files.setdefault(shown_file(file), set()).add(split)
    for place, split in places.items():
        files.setdefault(place, set()).add(split)
    for problem in problems:
        whole = problem.file.rsplit(", ", 1)[0]  # without the line or the annotation
        splits = files.get(problem.file) or files.get(whole) or {scored}
        if problem.severity == "error" and (scored not in splits or problem.code == "same-image"):
            rule = f"{problem.rule} Only the split '{scored}' is used here.".strip()
            problem = replace(problem, severity="warning", rule=rule)
        yield problem
