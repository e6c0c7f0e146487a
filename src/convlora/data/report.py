"""What the checks found, for people and for programs."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from convlora.data.layout import DataSet
from convlora.errors import DataError

_SENTENCE_END = re.compile(r"(?<!\.)\. ")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # a line break in a name, or worse for a terminal


def shown(text: str) -> str:
    """Text that any encoding can hold: bytes of a file name that are no UTF-8 as escapes."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half of a character from a json
        return text.encode("utf-8", "backslashreplace").decode()


def shown_file(file: object) -> str:
    """A file as problems name it: `shown`, and line breaks and other control characters as escapes."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], shown(str(file)))


def count(number: int, noun: str) -> str:
    """'1 error', '2 errors'."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass(frozen=True)
class Problem:
    """One finding."""

    severity: Literal["error", "warning"]
    code: str
    file: str
    found: str
    rule: str
    fix: str

    def __post_init__(self) -> None:
        """Names that are not UTF-8 are shown with escapes, else no report could be printed or parsed."""
        for key in ("found", "rule", "fix"):
            object.__setattr__(self, key, shown(getattr(self, key)))
        object.__setattr__(self, "file", shown_file(self.file))

    @property
    def told(self) -> str:
        """The file and what was found; messages of errors begin with the file, or a place in it, already."""
        found = self.found.rstrip(".") + "."
        return (
            found if found.startswith(tuple(self.file + sign for sign in " ,:/")) else f"{self.file}: {found}"
        )

    def __str__(self) -> str:
        told = (f"[{self.code}] {self.told}", self.rule, self.fix)
        return " ".join(part for part in told if part)

    @classmethod
    def of_error(cls, code: str, file: object, error: Exception) -> "Problem":
        """A problem from a message whose first sentence is what was found, and the rest rule and fix."""
        found, fix = _first_sentence(str(error), str(file))
        return cls("error", code, str(file), found, "", fix or f"Correct it: {file}.")


def _first_sentence(message: str, file: str) -> tuple[str, str]:
    """The first sentence, without its point, and the rest: a '. ' in a folder's name ends none."""
    ends = _SENTENCE_END.finditer(message)
    folders = [str(folder) for folder in (Path(file), *Path(file).parents) if ". " in str(folder)]
    spans = [match.span() for folder in folders for match in re.finditer(re.escape(folder), message)]
    for end in ends:
        if not any(start <= end.start() and end.end() <= stop for start, stop in spans):
            return message[: end.start()], message[end.end() :]
    return message, ""


@dataclass
class Report:
    """All findings, and the data set where there are no errors."""

    problems: list[Problem] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)
    found: DataSet | None = None
    named: tuple[str, ...] | None = None  # what the data itself calls its classes, id 0 first

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
        raise DataError(f"The data has {count(len(self.errors), 'error')}:\n" + "\n".join(lines))

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
        lines.append(f"{count(len(self.errors), 'error')}, {count(len(self.warnings), 'warning')}")
        return "\n".join(lines)


def _tell(severity: str, code: str, alike: list[Problem], limit: int) -> list[str]:
    if len(alike) <= 2:
        return [f"{severity}: {problem}" for problem in alike]
    rules, fixes = {p.rule for p in alike}, {p.fix for p in alike}
    lines = [" ".join((f"{severity}: [{code}] {len(alike)} times.", *(rules if len(rules) == 1 else ())))]
    for problem in alike[:limit]:
        own = [problem.told]
        own += [problem.rule] if len(rules) > 1 else []
        own += [problem.fix] if len(fixes) > 1 else []
        lines.append(f"  {' '.join(own)}")
    if len(alike) > limit:
        lines.append(f"  ... and {len(alike) - limit} more; --json shows all")
    return [*lines, *(f"  {fix}" for fix in fixes if len(fixes) == 1)]
