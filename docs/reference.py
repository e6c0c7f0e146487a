"""Write the tables of docs/commands.md and docs/methods.md that follow from the code.

    python docs/reference.py [--check]

`--check` writes nothing and fails where a page is not what the code gives.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from convlora.adapters import methods
from convlora.config import describe_keys
from convlora.losses import LOSSES
from convlora.training.objective import NAMED_LOSSES

HERE = Path(__file__).parent
END = "<!-- end -->"


def keys() -> Iterator[list[str]]:
    """A row for each key of a configuration."""
    yield ["key", "default", "takes", "meaning"]
    for key in describe_keys():
        yield [f"`{key.name}`", f"`{key.default}`" if key.default else "", key.rule, key.meaning]


def losses() -> Iterator[list[str]]:
    """A row for each loss."""
    yield ["loss", "head", "stands for", "meaning"]
    for name, loss in LOSSES.items():
        named = [f"`{word}`" for word, by_head in NAMED_LOSSES.items() if by_head[loss.head] == name]
        yield [f"`{name}`", loss.head, ", ".join(named), loss.about]


def options() -> Iterator[list[str]]:
    """A row for each option of each method."""
    yield ["method", "option", "default", "meaning"]
    for name, method in sorted(methods().items()):
        fields = dataclasses.fields(method)
        for field in fields:
            yield [f"`{name}`", f"`{field.name}`", f"`{_yaml(field.default)}`", field.metadata["help"]]
        if not fields:
            yield [f"`{name}`", "none", "", ""]


#: Page -> name of a table in it -> its rows.
TABLES = {"commands.md": {"keys": keys, "losses": losses}, "methods.md": {"options": options}}


def page(file: Path) -> str:
    """Text of a page with its tables as the code gives them."""
    text = file.read_text(encoding="utf-8")
    for name, rows in TABLES[file.name].items():
        start = f"<!-- made by docs/reference.py: {name} -->\n"
        before, found, rest = text.partition(start)
        _, ended, after = rest.partition(END)
        if not found or not ended:
            sys.exit(f"{file} has no place for '{name}': {start.strip()} ... {END}")
        text = "".join([before, start, *_table(rows()), END, after])
    return text


def _table(rows: Iterator[list[str]]) -> Iterator[str]:
    for number, row in enumerate(rows):
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n"
        if number == 0:
            yield "|" + "---|" * len(row) + "\n"


def _yaml(value: object) -> str:
    """A value as `--set` takes it."""
    return json.dumps(value).replace('"', "").replace(", ", ",")


def main() -> None:
    """Write the pages, or check them."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--check", action="store_true")
    check = made.parse_args().check
    for file in (HERE / name for name in TABLES):
        text = page(file)
        if not check:
            file.write_text(text, encoding="utf-8")
            print(f"Wrote {file}")
        elif text != file.read_text(encoding="utf-8"):
            sys.exit(f"{file} is not what the code gives; run python docs/reference.py")


if __name__ == "__main__":
    main()
