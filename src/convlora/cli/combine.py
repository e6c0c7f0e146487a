"""Which value counts: the command line's before the file's, and what that changes is told."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convlora.config import RunConfig, make_config, refuse_nulls
from convlora.errors import ConfigError
from convlora.presets import PRESETS
from convlora.settings import parse_assignments, read_yaml


@dataclass
class Asked:
    """What the user asked for, before it is checked.

    Attributes:
        values: keys of `RunConfig`.
        origins: where each was written.
        notes: what the command line changed in the file.
    """

    values: dict[str, Any]
    origins: dict[str, str]
    notes: list[str] = field(default_factory=list)

    def config(self) -> RunConfig:
        """Check the values; see `make_config`."""
        return make_config(self.values, self.origins)


def combine(options: Mapping[str, Any], settings: Iterable[str], file: Path | None) -> Asked:
    """Join options, `--set` items and a configuration file.

    The command line counts before the file. A key may be given there once: as an option or with --set. A
    --method of another name than the file's replaces it with its options; --epochs replaces the file's
    max_steps too, which would else decide.

    Args:
        options: of the command line, by key; None is left out. 'method' is a name.
        settings: `--set` items.
        file: config.yaml, if one is given.

    Raises:
        ConfigError: the file cannot be read, a key is given twice, epochs and max_steps are both given, or a
            preset is given that the file contradicts.
    """
    given = {key: value for key, value in options.items() if value is not None}
    assigned = parse_assignments(settings)
    refuse_nulls(assigned, "--set")
    _refuse_twice(given, assigned)
    command = _join_method(given, assigned)
    origins = {key: f"--set {key}" for key in assigned} | {key: _option(key) for key in given}
    if file is None:
        return Asked(command, origins)
    recorded = read_yaml(file)
    refuse_nulls(recorded, str(file))
    if isinstance(recorded.get("method"), str):
        recorded["method"] = {"name": recorded["method"]}
    _refuse_preset(command, recorded, file)
    notes = _differences(command, recorded, origins, file)
    values = {**recorded, **command}
    if "method" in command:
        values["method"] = _merged_method(command["method"], recorded.get("method"))
    if "epochs" in command and recorded.get("max_steps") is not None and "max_steps" not in command:
        values["max_steps"] = None
        notes.append(f"max_steps: left out for {origins['epochs']}, not {recorded['max_steps']} as in {file}")
    return Asked(values, {str(key): str(file) for key in recorded} | origins, notes)


def _refuse_twice(given: Mapping[str, Any], assigned: Mapping[str, Any]) -> None:
    both = sorted(given.keys() & assigned.keys() - {"method"})
    method = assigned.get("method", {})
    if "method" in given and not (isinstance(method, dict) and "name" not in method):
        both.append("method")
    if both:
        raise ConfigError(f"'{both[0]}' is given both as an option and with --set. Give it once.")
    if {"epochs", "max_steps"} <= given.keys() | assigned.keys():
        raise ConfigError(
            "epochs and max_steps are both given, and max_steps would decide alone. Give one of them."
        )


def _join_method(given: Mapping[str, Any], assigned: Mapping[str, Any]) -> dict[str, Any]:
    command = {**assigned, **given}
    if "method" in given:
        command["method"] = {"name": given["method"], **assigned.get("method", {})}
    return command


def _refuse_preset(command: Mapping[str, Any], recorded: Mapping[str, Any], file: Path) -> None:
    preset = command.get("preset")
    if preset is None:
        return
    wanted = {"preset": preset, **PRESETS.get(str(preset), {})}
    against = [
        key
        for key, value in wanted.items()
        if key in recorded and recorded[key] != value and key not in command
    ]
    if recorded.get("preset", preset) != preset or against:
        keys = ", ".join(f"{key}: {recorded[key]}" for key in against) or f"preset: {recorded['preset']}"
        raise ConfigError(
            f"--preset {preset} is given, but {file} says {keys}. Leave out the preset, or the file."
        )


def _differences(
    command: Mapping[str, Any], recorded: Mapping[str, Any], origins: Mapping[str, str], file: Path
) -> list[str]:
    notes = []
    for key, value in command.items():
        if key == "out" or key not in recorded:
            continue
        before = recorded[key]
        if key == "method" and isinstance(value, dict) and isinstance(before, dict):
            notes += _method_differences(value, before, file)
        elif value != before and str(value) != str(before):
            notes.append(f"{key}: {value} from {origins[key]}, not {before} as in {file}")
    return notes


def _method_differences(command: Mapping[str, Any], recorded: Mapping[str, Any], file: Path) -> list[str]:
    before = recorded.get("name", "conv-lora")
    if command.get("name", before) != before:
        return [
            f"method: {command['name']} from the command line, not {before} with its options as in {file}"
        ]
    return [
        f"method.{key}: {value} from --set, not {recorded[key]} as in {file}"
        for key, value in command.items()
        if key in recorded and recorded[key] != value
    ]


def _merged_method(command: object, recorded: object) -> object:
    if not isinstance(command, dict) or not isinstance(recorded, dict):
        return command
    before = recorded.get("name", "conv-lora")
    return {**recorded, **command} if command.get("name", before) == before else command


def _option(key: str) -> str:
    return {"data": "DATA"}.get(key, f"--{key.replace('_', '-')}")
