"""One run as a record: command line -> RunConfig -> config.yaml, and back. Unknown keys are errors."""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from convlora.adapters import build_method
from convlora.errors import ConfigError
from convlora.head import HeadKind

#: What `--preset paper` changes: the official code's behaviour, quirks included (docs/paper.md tells each).
PAPER: dict[str, Any] = {
    "resize": "stretch",
    "augment": "flip",
    "loss": "official",
    "lr": 1e-4,
    "multiclass_head": "mask-classification",
    "micro_batch": 1,
    "epochs": 30,
    "patience": 10,
}
PRESETS: dict[str, dict[str, Any]] = {"default": {}, "paper": PAPER}


class RunConfig(BaseModel):
    """Everything that decides a training run."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    data: Path = Field(description="Folder with images and masks; or a .csv, .json or .yaml.")
    out: Path = Field(description="Run folder.")
    preset: Literal["default", "paper"] = Field("default", description="Defaults that the run started from.")
    backbone: str = Field("sam-tiny", description="sam-tiny, a hub id, a folder, or Meta's .pth.")
    method: dict[str, Any] = Field(
        default_factory=lambda: {"name": "conv-lora"}, description="Method: its name and its options."
    )
    classes: list[str] | None = Field(None, description="Class names, id 0 first; else from the data folder.")
    palette: Path | None = Field(None, description="File with the colours of the classes, for colour masks.")
    multiclass_head: HeadKind = Field("per-class", description="Head for three or more classes.")
    num_masks: int | None = Field(None, ge=2, description="Mask tokens of mask classification.")
    image_size: int | None = Field(None, ge=32, le=4096, description="Side of the input in pixels.")
    resize: Literal["pad", "stretch"] = Field("pad", description="Keep the aspect and pad, or stretch.")
    augment: Literal["none", "flip", "default"] = Field("default", description="Augmentation.")
    loss: str = Field("default", description="'default', 'official' (the paper's code), or a loss by name.")
    epochs: int = Field(30, ge=1, description="Passes over the training images.")
    max_steps: int | None = Field(None, ge=1, description="Optimiser steps; overrides epochs.")
    batch_size: int = Field(4, ge=1, description="Images for one optimiser step, over all processes.")
    micro_batch: int | None = Field(
        None, ge=1, description="Images in memory at once on each device; else 1 for SAM's sizes."
    )
    lr: float | None = Field(None, gt=0, le=1, description="Peak learning rate; else by the backbone's size.")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="AdamW's decay; none on biases and norms.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field("auto", description="Mixed precision.")
    seed: int = Field(0, ge=0, lt=2**31, description="Start of all random numbers.")
    workers: int = Field(0, ge=0, le=64, description="Processes that read images beside the training.")
    metric: str = Field("mean_dice_foreground", description="Validation metric that chooses the best model.")
    eval_every: int | None = Field(None, ge=1, description="Steps between validations; else about an epoch.")
    patience: int | None = Field(None, ge=1, description="Validations without gain before the run stops.")
    previews: int = Field(3, ge=0, le=32, description="Validation images drawn at each validation.")

    @field_validator("method")
    @classmethod
    def _method_is_known(cls, value: dict[str, Any]) -> dict[str, Any]:
        options = dict(value)
        build_method(options.pop("name", "conv-lora"), options)  # raises ConfigError
        return {"name": "conv-lora"} | value

    def to_yaml(self) -> str:
        """Text of config.yaml; `load_config` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Build a configuration from plain values; the preset's come first, then what is given.

    Args:
        values: keys of `RunConfig`; a value of None means 'not given'.

    Raises:
        ConfigError: a key is unknown or a value is out of its range; all problems are listed.
    """
    given = {key: value for key, value in values.items() if value is not None}
    _check_known(given)
    preset = given.get("preset", "default")
    if preset not in PRESETS:
        raise ConfigError(f"preset is '{preset}'; it must be one of {', '.join(PRESETS)}.")
    try:
        return RunConfig(**(PRESETS[preset] | given))
    except ValidationError as error:
        problems = [_explain(problem) for problem in error.errors()]
        raise ConfigError("The configuration is not valid:\n" + "\n".join(problems)) from error


def load_config(file: Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a config.yaml; `overrides` win over it.

    Raises:
        ConfigError: the file is missing or not a YAML mapping, or its content is not valid.
    """
    return make_config({**read_yaml(file), **(overrides or {})})


def check_same(asked: RunConfig, recorded: RunConfig, out: Path) -> None:
    """Check that a run is resumed with the configuration it was started with.

    Raises:
        ConfigError: they differ; names the keys and both values.
    """
    a, b = asked.model_dump(), recorded.model_dump()
    different = [f"  {key}: {b[key]} in the run, {a[key]} now" for key in a if a[key] != b[key]]
    if different:
        raise ConfigError(
            f"The run in {out} was started with another configuration:\n" + "\n".join(different) + "\n"
            "Leave these options out to resume it, or start a new run in another --out."
        )


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ConfigError: the file is missing, is not valid YAML, or is no mapping.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{file} does not exist.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} must hold keys and values, got {type(content).__name__}.")
    return content


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Read `--set key=value` items; values are YAML, `method.rank=8` reaches into the method.

    Raises:
        ConfigError: an item has no '='.
    """
    values: dict[str, Any] = {}
    for item in assignments:
        key, sign, text = item.partition("=")
        if not sign or not key:
            raise ConfigError(f"--set {item}: it must have the form key=value, for example method.rank=8.")
        target = values
        *parents, last = key.strip().split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = _read_value(text)
    return values


def _read_value(text: str) -> object:
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)  # YAML takes 1e-3 for a word
        except ValueError:
            return value
    return value


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Suggest the nearest valid name, or list all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(got, names, n=1)
    return f"Did you mean '{near[0]}'?" if near else f"Valid are: {', '.join(names)}."


def _check_known(values: Mapping[str, Any]) -> None:
    unknown = [
        f"  '{key}' is no key. {did_you_mean(key, RunConfig.model_fields)}"
        for key in values
        if key not in RunConfig.model_fields
    ]
    if unknown:
        raise ConfigError("The configuration has unknown keys:\n" + "\n".join(unknown))


def _explain(problem: ErrorDetails) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    field = RunConfig.model_fields.get(str(problem["loc"][0])) if problem["loc"] else None
    meaning = f" ({field.description})" if field else ""
    got = "" if problem["type"] == "missing" else f", got {problem['input']!r}"
    return f"  {key}: {problem['msg']}{got}{meaning}"
