"""Findings of one kind in one line, for commands whose work is another than to list them."""

from collections.abc import Iterable

from convlora.data.report import Problem

_ALONE = 2  # so many are told one by one


def gathered(problems: Iterable[Problem]) -> list[str]:
    """Findings as text: of more than two of a kind the first, and how many more there are."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.code, []).append(problem)
    lines: list[str] = []
    for alike in kinds.values():
        if len(alike) <= _ALONE:
            lines += map(str, alike)
        else:
            lines.append(f"{alike[0]} ({len(alike) - 1} more like it: convlora check shows all)")
    return lines
