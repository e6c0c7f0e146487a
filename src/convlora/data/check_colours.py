"""Checks of the colours of masks: of colour masks, and of indexed ones, which are read by their indices."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from convlora.data.masks import IGNORE
from convlora.data.palette import FILE, count_colours, draft
from convlora.data.report import Problem
from convlora.data.scan import MaskFacts
from convlora.data.source import warning
from convlora.data.yolo import BAD_LINE
from convlora.settings import as_typed

_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_ROUNDED = 16  # levels


def join_colour_masks(
    problems: Iterable[Problem], masks: Iterable[MaskFacts], base: Path, root: Path
) -> Iterator[Problem]:
    """All colour masks as one problem, with the palette to fill in; bad lines of labels were told before.

    Args:
        problems: of all files.
        masks: all of the data set.
        base: folder of palette.txt.
        root: what the user calls DATA.
    """
    coloured: list[Problem] = []
    for problem in problems:
        if problem.code == "colour-mask":
            coloured.append(problem)
        elif problem.code != BAD_LINE:
            yield problem
    yield from _with_draft(coloured, [*masks], "hold colours", base, root)


def check_indices(masks: Sequence[MaskFacts], binary: bool, base: Path, root: Path) -> Iterator[Problem]:
    """Indexed masks of which one index has several colours, or whose colours say the inverse of the indices.

    Args:
        masks: those without an error.
        binary: whether there are two classes.
        base: folder of palette.txt.
        root: what the user calls DATA.
    """
    usual = _usual_colours(masks)
    odd = [
        _tell_index(mask, index, *usual[index])
        for mask in masks
        for index in [next((i for i, c in mask.colours.items() if not _alike(c, usual[i][0])), None)]
        if index is not None
    ]
    if odd:
        yield from _with_draft(odd, masks, "have other colours than most", base, root)
    elif binary and usual.get(0, ("",))[0] == _WHITE:
        yield from _check_inverse([m for m in masks if _looks_inverse(m)], base)


def _alike(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
    """Whether two colours look the same: programs round them."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= _ROUNDED


def _usual_colours(masks: Iterable[MaskFacts]) -> dict[int, tuple[tuple[int, int, int], MaskFacts]]:
    """Index -> the colour that most masks give it, and the first of these masks."""
    counts = Counter((index, colour) for mask in masks for index, colour in mask.colours.items())
    found = {index: colour for (index, colour), _ in reversed(counts.most_common())}
    return {
        index: (colour, next(mask for mask in masks if mask.colours.get(index) == colour))
        for index, colour in found.items()
    }


def _tell_index(mask: MaskFacts, index: int, usual: tuple[int, int, int], other: MaskFacts) -> Problem:
    found = (
        f"is indexed, and its index {index} is {_show(mask.colours[index])}, but {_show(usual)} in "
        f"{other.label.name}"
    )
    rule = "Indexed masks are read by their indices, so an index has one colour in all masks."
    return Problem("error", "mixed-palette", str(mask.label), found, rule, "")


def _with_draft(
    alike: Sequence[Problem], masks: Sequence[MaskFacts], what: str, base: Path, root: Path
) -> Iterator[Problem]:
    """Problems that a palette solves: the first with one to fill in, the others name it."""
    if not alike:
        return
    first, indexed = alike[0], alike[0].code == "mixed-palette"
    more = f" ({len(alike)} of {len(masks)} masks {what})" if len(alike) > 1 else ""
    counted = count_colours(mask.label.path for mask in masks)
    fix = (
        f"Write this into {base / FILE} with your names, id 0 first ('ignore' leaves pixels out; one "
        f"name may have several colours), or into another file for --palette FILE:\n{draft(counted)}\n"
        f"Then: {as_typed(['convlora', 'check', str(root)])}"
    )
    own = " If the indices are the class ids, take the colours away instead (docs/rearrange.md)."
    yield replace(first, found=first.found + more, fix=fix + (f"\n{own.strip()}" if indexed else ""))
    # alone, as where the first mask's split is not the one that is used, it must say enough
    fix = (
        f"Its colours need a palette: --palette FILE, or {base / FILE}. "
        f"{as_typed(['convlora', 'check', str(root)])} drafts one for all masks, at {Path(first.file).name}."
    )
    yield from (replace(problem, fix=fix + own * indexed) for problem in alike[1:])


def _looks_inverse(mask: MaskFacts) -> bool:
    return mask.colours.get(0) == _WHITE and _BLACK in (mask.colours.get(1), mask.colours.get(IGNORE))


def _check_inverse(masks: Sequence[MaskFacts], base: Path) -> Iterator[Problem]:
    """Written by programs that number the colours as they come; what is drawn is white then."""
    if not masks:
        return
    found = f"is indexed, with 0 shown white and foreground black, as {len(masks)} masks here"
    rule = "Indexed masks are read by their indices, not by colour: 0 is background."
    fix = (
        f"If all is well so, do nothing. If white is the foreground, write {base / FILE}:\n"
        "0 0 0 background\n255 255 255 foreground"
    )
    yield warning("inverse-palette", masks[0].label, found, rule, fix)


def _show(colour: Iterable[int]) -> str:
    return f"rgb({', '.join(map(str, colour))})"
