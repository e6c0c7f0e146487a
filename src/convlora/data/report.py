"""What the checks found, for people and for programs."""

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from convlora.data.layout import DataSet
from convlora.errors import DataError


@dataclass(frozen=True)
class Problem:
    """One finding."""

    severity: Literal["error", "warning"]
    code: str
    file: str
    found: str
    rule: str
    fix: str

    def __str__(self) -> str:
        told = (f"[{self.code}] {self.file}: {self.found.rstrip('.')}.", self.rule, self.fix)
        return " ".join(part for part in told if part)

    @classmethod
    def of_error(cls, code: str, file: object, error: Exception) -> "Problem":
        """A problem from a message whose first sentence is what was found, and the rest rule and fix."""
        found, fix, *_ = [*re.split(r"(?<!\.)\. ", str(error), maxsplit=1), ""]
        return cls("error", code, str(file), found, "", fix or f"Correct it: {file}.")


@dataclass
class Report:
    """All findings, and the data set where there are no errors."""

    problems: list[Problem] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)
    found: DataSet | None = None

    @property
    def errors(self) -> list[Problem]:
        """Problems that stop a training."""
        return [p for p in self.problems if p.severity == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """Problems to know of."""
        return [p for p in self.problems if p.severity == "warning"]

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.errors

    @property
    def dataset(self) -> DataSet:
        """The checked data set; raises the errors if there are any."""
        self.raise_if_errors()
        if self.found is None:
            raise DataError("The data could not be read.")
        return self.found

    def raise_if_errors(self, limit: int = 20) -> None:
        """Raise a DataError that lists the errors.

        Raises:
            DataError: there are errors.
        """
        if self.ok:
            return
        lines = [f"  {problem}" for problem in self.errors[:limit]]
        more = len(self.errors) - limit
        if more > 0:
            lines.append(f"  ... and {more} more: convlora check shows all")
        raise DataError(f"The data has {_count(self.errors, 'error')}:\n" + "\n".join(lines))

    def to_json(self) -> str:
        """The report for programs."""
        content = {
            "ok": self.ok,
            "statistics": self.statistics,
            "problems": [asdict(p) for p in self.problems],
        }
        return json.dumps(content, indent=2)

    def to_text(self, limit: int = 10) -> str:
        """The report for people: findings of one kind together, the first `limit` of each in full."""
        lines: list[str] = []
        for severity, found in (("error", self.errors), ("warning", self.warnings)):
            kinds: dict[str, list[Problem]] = {}
            for problem in found:
                kinds.setdefault(problem.code, []).append(problem)
            for code, alike in kinds.items():
                lines += _tell(severity, code, alike, limit)
        for key, value in self.statistics.items():
            lines.append(f"{key}: {value}")
        lines.append(f"{_count(self.errors, 'error')}, {_count(self.warnings, 'warning')}")
        return "\n".join(lines)


def _count(found: list[Problem], what: str) -> str:
    return f"{len(found)} {what}{'' if len(found) == 1 else 's'}"


def _tell(severity: str, code: str, alike: list[Problem], limit: int) -> list[str]:
    if len(alike) <= 2:
        return [f"{severity}: {problem}" for problem in alike]
    rules, fixes = {p.rule for p in alike}, {p.fix for p in alike}
    lines = [" ".join((f"{severity}: [{code}] {len(alike)} times.", *(rules if len(rules) == 1 else ())))]
    for problem in alike[:limit]:
        own = [problem.found.rstrip(".") + "."]
        own += [problem.rule] if len(rules) > 1 else []
        own += [problem.fix] if len(fixes) > 1 else []
        lines.append(f"  {problem.file}: {' '.join(own)}")
    if len(alike) > limit:
        lines.append(f"  ... and {len(alike) - limit} more; --json shows all")
    return [*lines, *(f"  {fix}" for fix in fixes if len(fixes) == 1)]
