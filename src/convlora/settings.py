"""What a user wrote: YAML files and `--set` items as plain values. Nothing is guessed or silently dropped."""

import difflib
import errno
import os
import re
import shlex
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from convlora.errors import ConfigError

_SHOWN = 60  # characters of a path that is none


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses repeated keys and aliases, and reads 1e-3 as a number."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(
                problem="an alias (*name) is not read here; write it out", problem_mark=mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key '{key.value}' is there twice; keep one of them"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-3, without a point, for a word
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def expand_user(path: str) -> str:
    """Put the home folder for a leading '~', as shells do, but not behind the '=' of `--out=~/run`."""
    return os.path.expanduser(path)  # noqa: PTH111  # pathlib's fails where there is no such user


def no_path(text: str) -> str:
    """Why nothing can have this path, as a sentence; '' where something could."""
    try:
        os.lstat(text)
    except (OSError, ValueError) as error:
        # ValueError: a null character, or half of one that has two
        if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
            return ""
        reason = error.strerror if isinstance(error, OSError) else error
        short = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        return f"{short!r} can be no path ({reason}). Give another."
    return ""


def as_typed(command: Sequence[str]) -> str:
    """A command as it is typed into this system's shell."""
    return subprocess.list2cmdline(command) if os.name == "nt" else shlex.join(command)


def check_kind(name: str, value: object, kind: type, rule: str) -> None:
    """Refuse, of a Python function's arguments, what no command line can give; True is no number.

    Raises:
        ConfigError: the value is not of this kind.
    """
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name} is {value!r}; it must be {rule}.")


def did_you_mean(got: object, known: Iterable[str]) -> str:
    """Suggest the nearest valid name, or list all of them."""
    names = sorted(known)
    return near_hint(got, names).strip() or f"Valid are: {', '.join(names)}."


def near_hint(got: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Suggest the nearest valid name, behind a space, for a message that lists them all; '' if none is near.

    Args:
        got: what was given.
        known: the valid names.
        cutoff: likeness from which a name is near, 0 to 1.
    """
    near = difflib.get_close_matches(str(got), list(known), n=1, cutoff=cutoff)
    return f" Did you mean '{near[0]}'?" if near else ""


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file is missing or unreadable, is not valid UTF-8 or YAML (with the line), has a key
            twice or an alias, or is no mapping.
    """
    try:
        content = parse_yaml(file.read_text(encoding="utf-8-sig"), str(file))
    except FileNotFoundError as error:
        raise ConfigError(f"{file} does not exist.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read: {error.strerror}. Give a YAML file of keys and values."
        ) from error
    if content is None:
        raise ConfigError(f"{file} is empty; it must hold keys and values, such as 'epochs: 30'.")
    if not isinstance(content, dict):
        raise ConfigError(
            f"{file} must hold keys and values, got {type(content).__name__}. "
            "Write it as 'epochs: 30', a line each."
        )
    return content


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Read `--set key=value` items; values are YAML, `method.rank=8` reaches into the method.

    Raises:
        ConfigError: an item has no '=', no value or no valid YAML, reaches into a key that has no parts, or a
            key has two values; all problems are listed.
    """
    flat: dict[str, Any] = {}
    problems = []
    for item in assignments:
        try:
            _assign(flat, item)
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    values: dict[str, Any] = {}
    for key, value in flat.items():
        parent, dot, option = key.partition(".")
        if dot:
            values.setdefault(parent, {})[option] = value
        else:
            values[key] = value
    return values


def _assign(flat: dict[str, Any], item: str) -> None:
    """Add what one item says to `flat`, where the method's options are keys such as 'method.rank'."""
    key, sign, text = (part.strip() for part in item.partition("="))
    first, *rest = key.split(".")
    if not sign or not first or "" in rest:
        raise ConfigError(f"--set {item}: it must have the form key=value, for example method.rank=8.")
    if not text:
        raise ConfigError(f"--set {item}: the value is empty. Write {key}=null to leave it to the default.")
    if rest and (first != "method" or len(rest) > 1):
        hint = (
            "'method' has parts one deep"
            if first == "method"
            else f"'{first}' has no parts; only 'method' has"
        )
        raise ConfigError(f"--set {item}: {hint}, for example method.rank=8.")
    value = parse_yaml(text, f"--set {item}")
    if key == "method" and isinstance(value, str):
        value = {"name": value}
    parts = (
        {f"method.{name}": v for name, v in value.items()}
        if key == "method" and isinstance(value, dict)
        else {}
    )
    for name, given in (parts or {key: value}).items():
        if name in flat and flat[name] != given:
            raise ConfigError(f"--set gives {name} two values, {flat[name]!r} and {given!r}. Give it once.")
        flat[name] = given
    if "method" in flat and any(name.startswith("method.") for name in flat):
        raise ConfigError(f"--set gives method the value {flat['method']!r} and parts. Give its parts alone.")


def parse_yaml(text: str, source: str) -> Any:  # noqa: ANN401  # whatever YAML holds
    """Read YAML text.

    Args:
        text: the YAML.
        source: named in the message.

    Raises:
        ConfigError: it is not valid, or has a key twice or an alias; says the line.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source} is not valid YAML{line}: {error.problem}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{source} is not valid YAML: {reason}.") from error
