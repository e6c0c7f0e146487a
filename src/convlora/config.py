"""One run as a record: command line -> RunConfig -> config.yaml, and back. Unknown keys are errors."""

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from convlora import run_files
from convlora.adapters import Method, build_method
from convlora.backbone.weights import locate
from convlora.errors import ConfigError
from convlora.head import HeadKind
from convlora.presets import PRESETS, preset_method
from convlora.settings import did_you_mean, expand_user, near_hint, no_path, read_yaml
from convlora.unet import UNET

_SAYS_ALL = "says_all"  # type of a problem of ours, for pydantic

#: Values of `augment` with which an image has one or two forms in the whole run.
FEW_INPUTS = ("none", "flip")
#: Keys that may change when a run is resumed: the weights do not depend on them, up to rounding.
MAY_CHANGE = ("micro_batch", "checkpointing", "workers", "previews")


class RunConfig(BaseModel):
    """Everything that decides a training run."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    data: Path = Field(description="Folder with images and masks; or a .csv, .json or .yaml.")
    out: Path = Field(description="Run folder.")
    preset: Literal["default", "paper"] = Field(
        "default", description="Defaults that the run starts from; paper: the official code's way."
    )
    backbone: str = Field(
        "sam-tiny", description="sam-tiny, a hub id, a folder, Meta's .pth, random:NAME; or unet, no SAM."
    )
    method: dict[str, Any] = Field(
        default_factory=lambda: {"name": "conv-lora"}, description="Name of the method, with its options."
    )
    classes: list[str] | None = Field(None, description="Class names, id 0 first; else from the data folder.")
    palette: Path | None = Field(
        None, description="File with the colours of the classes; else palette.txt of the data."
    )
    multiclass_head: HeadKind = Field(
        "per-class", description="Head for three or more classes: per-class, or mask-classification."
    )
    num_masks: int | None = Field(
        None, ge=2, description="Mask tokens of mask classification; else 10, or one a class if more."
    )
    image_size: int | None = Field(
        None, ge=32, le=4096, description="Side of the input in pixels; else the backbone's own (unet: 256)."
    )
    resize: Literal["pad", "stretch"] = Field(
        "stretch", description="How an image becomes the square input; pad keeps its aspect."
    )
    augment: Literal["none", "flip", "strong"] = Field(
        "flip", description="Flips, left to right, or none; strong also changes colours, scale and place."
    )
    keep_embeddings: bool | None = Field(
        None, description="Compute the embeddings of a frozen encoder once; else where that is possible."
    )
    loss: str = Field("default", description="'default', 'official' (the paper's code), or a loss by name.")
    train_images: int | None = Field(
        None, ge=1, description="Use so many of the training images, drawn by the seed; else all."
    )
    epochs: int = Field(30, ge=1, description="Passes over the training images.")
    max_steps: int | None = Field(None, ge=1, description="Optimiser steps; overrides epochs.")
    batch_size: int = Field(4, ge=1, description="Images for one optimiser step, over all processes.")
    micro_batch: int | None = Field(
        None,
        ge=1,
        description="Images in memory at once on each device; else 1 for SAM's sizes, its share of the batch "
        "for smaller ones.",
    )
    checkpointing: bool = Field(
        False, description="Compute the encoder's blocks again for the backward pass: less memory, more time."
    )
    lr: float | None = Field(
        None, gt=0, le=1, description="Peak learning rate; else 1e-4 for SAM's sizes, 1e-3 for smaller ones."
    )
    weight_decay: float = Field(1e-4, ge=0, le=1, description="AdamW's decay; none on biases and norms.")
    clip: float = Field(1.0, gt=0, description="Largest norm of the gradient; a longer one is cut to it.")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="Mixed precision; auto: bf16 or fp16 where the device has arithmetic for it."
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="Start of all random numbers but those of an automatic split."
    )
    workers: int = Field(0, ge=0, le=64, description="Processes that read images; 0: beside a GPU a thread.")
    metric: str = Field("mean_dice_foreground", description="Validation metric that chooses the best model.")
    eval_every: int | None = Field(
        None,
        ge=1,
        description="Steps between validations; else an epoch, or 1/20 of the run if that is more.",
    )
    patience: int | None = Field(
        None, ge=1, description="Validations without gain before the run stops; else it goes to its end."
    )
    previews: int = Field(
        3,
        ge=0,
        le=32,
        description="Validation images drawn at each validation; of several processes the first scores them.",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, bool) and _kinds(cls.model_fields[str(info.field_name)]) & {int, float}:
            raise ValueError("true or false is no number")
        return value

    @field_validator("data", "out", "palette", "backbone", mode="before")
    @classmethod
    def _home_is_written_out(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str | Path):
            return value
        text = expand_user(str(value))
        if wrong := no_path(text):
            raise _own(wrong)
        # pydantic refuses text, but no path, that holds bytes which the system's encoding cannot express
        return text if info.field_name == "backbone" else Path(text)

    @field_validator("method", mode="before")
    @classmethod
    def _method_by_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("method")
    @classmethod
    def _method_is_known(cls, value: dict[str, Any]) -> dict[str, Any]:
        options = {"name": "conv-lora"} | value
        try:
            build_method(*_name_and_options(options))
        except ConfigError as error:
            raise _own(str(error)) from error
        return options

    @field_validator("classes")
    @classmethod
    def _classes_are_names(cls, value: list[str] | None) -> list[str] | None:
        names = [name.strip() for name in value or ()]
        if value is not None and (not 2 <= len(names) <= 255 or "" in names or len(set(names)) < len(names)):
            raise ValueError("2 to 255 different names, none of them empty")
        return value if value is None else names

    @model_validator(mode="after")
    def _keys_fit_together(self) -> Self:
        if self.num_masks is not None and self.multiclass_head != "mask-classification":
            raise _own(
                f"num_masks is {self.num_masks}, but multiclass_head '{self.multiclass_head}' has one "
                "mask for each class. Leave num_masks out, or set multiclass_head=mask-classification."
            )
        if self.keep_embeddings and self.trains_encoder:
            raise _own(
                f"keep_embeddings is true, but method '{self.method['name']}' trains the encoder, so "
                "an image's embedding is another after every step. Leave keep_embeddings out, or use "
                "--method decoder-only."
            )
        if self.keep_embeddings and not self.keeps_embeddings:
            raise _own(
                f"keep_embeddings is true, but augment '{self.augment}' gives every image new pixels "
                "in every epoch, and so a new embedding. Set augment=flip or augment=none, or leave "
                "keep_embeddings out."
            )
        return self

    def build_method(self) -> Method:
        """The method with its options."""
        return build_method(*_name_and_options(self.method))

    @property
    def trains_encoder(self) -> bool:
        """Whether the method changes the encoder."""
        return self.build_method().trains_encoder

    @property
    def keeps_embeddings(self) -> bool:
        """Whether the run computes every image's embedding once and keeps it."""
        possible = not self.trains_encoder and self.augment in FEW_INPUTS
        return possible and self.keep_embeddings is not False

    def located(self) -> "RunConfig":
        """The same with absolute paths, `out` left as it is: it means the same in every working folder."""
        places = {
            "data": self.data.absolute(),
            "palette": self.palette and self.palette.absolute(),
            "backbone": self.backbone if self.backbone == UNET else locate(self.backbone),
        }
        return self.model_copy(update=places)

    def to_yaml(self) -> str:
        """Text of config.yaml; `load_config` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


class Key(NamedTuple):
    """A key of `RunConfig` for people: default (empty where it must be given) and rule in words of YAML."""

    name: str
    default: str
    rule: str
    meaning: str


def describe_keys() -> list[Key]:
    """All keys of `RunConfig`, in the order of config.yaml."""
    return [
        Key(
            name,
            "" if field.is_required() else _default(field),
            _rule(name, field) + (", or null" if _nullable(name) else ""),
            str(field.description),
        )
        for name, field in RunConfig.model_fields.items()
    ]


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, dict):
        return str(value["name"])
    return yaml.safe_dump(value).removesuffix("...\n").strip()


def make_config(values: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> RunConfig:
    """Build a configuration from plain values; the preset's come first, then what is given.

    Args:
        values: keys of `RunConfig`. None is a value for the keys that may be None (it replaces the preset's);
            for the others it means 'not given'.
        origins: where a key was written, such as '--lr' or a file, for the messages.

    Raises:
        ConfigError: a key is unknown or a value is out of its range; all problems are listed.
    """
    given = {k: v for k, v in values.items() if v is not None or _nullable(k)}
    known = {key: value for key, value in given.items() if key in RunConfig.model_fields}
    problems = [
        _line(str(key), f"'{key}' is no key. {did_you_mean(key, RunConfig.model_fields)}", origins)
        for key in given
        if key not in RunConfig.model_fields
    ]
    preset = str(given.get("preset", "default"))
    chosen = PRESETS.get(preset, {}) | known
    method = chosen.get("method", {})
    method = {"name": method} if isinstance(method, str) else method
    chosen["method"] = preset_method(method, preset) if isinstance(method, Mapping) else method
    try:
        config = RunConfig(**chosen)
    except ValidationError as error:
        first = dict(map(_explain, reversed(error.errors())))  # one for each key
        problems += [_line(key, text, origins) for key, text in reversed(first.items())]
    if problems:
        raise ConfigError("The configuration is not valid:\n" + "\n".join(problems))
    return config


def load_config(file: Path, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """Read a config.yaml; `overrides` win over it.

    Raises:
        ConfigError: the file is missing or not a YAML mapping, or its content is not valid.
    """
    values = read_yaml(file)
    refuse_nulls(values, str(file))
    written = [str(key) for key in values if key not in (overrides or {})]
    return make_config({**values, **(overrides or {})}, dict.fromkeys(written, str(file)))


def refuse_nulls(values: Mapping[str, Any], source: str) -> None:
    """Check that only keys which may be None are null.

    Raises:
        ConfigError: another key is; names the source.
    """
    empty = [str(key) for key, value in values.items() if value is None and not _nullable(key)]
    if empty:
        raise ConfigError(
            f"{source}: {', '.join(empty)} {'has' if len(empty) == 1 else 'have'} no value. Give one, "
            "or leave the key out for its default."
        )


def check_same(asked: RunConfig, recorded: RunConfig, out: Path) -> None:
    """Check that a run is resumed with the configuration it was started with.

    `out` itself may have moved, and the keys of `MAY_CHANGE` be others.

    Raises:
        ConfigError: they differ; names the keys and both values.
    """
    free = {"out", *MAY_CHANGE}
    # runs of before recorded paths as they were typed
    a, b = (config.located().model_dump(exclude=free) for config in (asked, recorded))
    for values in (a, b):
        paths = {key: Path(str(values[key])) for key in ("data", "palette", "backbone") if values[key]}
        values |= {key: path.resolve() for key, path in paths.items() if path.is_absolute()}
    different = [f"  {key}: {b[key]} in the run, {a[key]} now" for key in a if a[key] != b[key]]
    if different:
        moved = (
            f"\nIf the data was moved, change 'data' in {out / run_files.CONFIG}."
            if a["data"] != b["data"]
            else ""
        )
        raise ConfigError(
            f"The run in {out} was started with another configuration:\n" + "\n".join(different) + "\n"
            "Leave these options out to resume it, or start a new run in another --out. Only "
            f"{', '.join(MAY_CHANGE[:-1])} and {MAY_CHANGE[-1]} may change.{moved}"
        )


def _own(text: str) -> PydanticCustomError:
    """A problem whose message says all itself."""
    return PydanticCustomError(_SAYS_ALL, "{text}", {"text": text})


def _name_and_options(method: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    options = dict(method)
    return options.pop("name"), options


def _nullable(key: object) -> bool:
    field = RunConfig.model_fields.get(str(key))
    return field is not None and NoneType in get_args(field.annotation)


def _kinds(field: FieldInfo) -> set[Any]:
    """Types that a field takes, None left out."""
    return {kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not NoneType}


def _line(key: str, text: str, origins: Mapping[str, str] | None) -> str:
    origin = (origins or {}).get(key.partition(".")[0])
    place = f"{key}{f' ({origin})' if origin else ''}: " if key else ""
    return f"  {place}" + text.replace("\n", "\n    ")


def _explain(problem: ErrorDetails) -> tuple[str, str]:
    """Key and message of one problem that pydantic found."""
    key = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == _SAYS_ALL:
        return key, problem["msg"]
    field = RunConfig.model_fields[key]
    if problem["type"] == "missing":
        return key, f"it is not given. {field.description}"
    got, rule = problem["input"], _rule(key, field)
    hint = near_hint(got, _choices(field)) if isinstance(got, str) else ""
    return key, f"got {got!r}; it must be {rule}.{hint} ({field.description})"


def _choices(field: FieldInfo) -> tuple[str, ...]:
    return tuple(choice for choice in get_args(field.annotation) if isinstance(choice, str))


def _rule(key: str, field: FieldInfo) -> str:
    """What a field takes, in words."""
    named = {
        "method": "a name, or keys such as name and rank",
        "classes": "a list of 2 to 255 different names, such as [background, cell]; quote words such as 'no'",
    }
    if key in named:
        return named[key]
    if _choices(field):
        return f"one of {', '.join(_choices(field))}"
    kinds = _kinds(field)
    if not kinds & {int, float}:
        return "true or false" if bool in kinds else "a path" if Path in kinds else "text"
    words = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
    bounds = [
        text.format(getattr(bound, name))
        for bound in field.metadata
        for name, text in words.items()
        if hasattr(bound, name)
    ]
    return f"a {'whole' if int in kinds else 'finite'} number, {' and '.join(bounds)}"
