"""What the checks found, for people and for programs."""

import json
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
        return f"[{self.code}] {self.file}: {self.found}. {self.rule} {self.fix}".replace(". .", ".")


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
        raise DataError(f"The data has {len(self.errors)} errors:\n" + "\n".join(lines))

    def to_json(self) -> str:
        """The report for programs."""
        content = {
            "ok": self.ok,
            "statistics": self.statistics,
            "problems": [asdict(p) for p in self.problems],
        }
        return json.dumps(content, indent=2)

    def to_text(self) -> str:
        """The report for people."""
        lines = [f"{problem.severity}: {problem}" for problem in (*self.errors, *self.warnings)]
        for key, value in self.statistics.items():
            lines.append(f"{key}: {value}")
        lines.append(f"{len(self.errors)} errors, {len(self.warnings)} warnings")
        return "\n".join(lines)
