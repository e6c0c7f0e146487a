"""Reading the adapter folder: every way in which it may be wrong has its own message."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from convlora import run_files
from convlora._version import __version__
from convlora.adapters import build_method, is_method
from convlora.errors import ConfigError, WeightsError
from convlora.head import HeadKind
from convlora.model import SegmenterConfig
from convlora.run_files import BEST, LAST
from convlora.settings import did_you_mean
from convlora.weight_files import file_digest, read_json, read_tensors

CONFIG, TENSORS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
FORMAT = 1
_AGAIN = "Copy the whole adapter folder again, or train anew."
_OWN = "A method of your own must be registered first, or its package installed (docs/python.md). "


def _all_different(classes: list[str]) -> list[str]:
    if len(set(classes)) < len(classes):
        raise ValueError("the names must be different")
    return classes


class AdapterConfig(BaseModel):
    """Content of adapter_config.json."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format: int
    convlora_version: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    backbone: str
    backbone_fingerprint: str
    classes: Annotated[list[str], Field(min_length=2, max_length=255), AfterValidator(_all_different)]
    method: str
    method_options: dict[str, Any]
    head: HeadKind
    num_masks: int = Field(ge=0)
    image_size: int = Field(ge=1)
    resize: str = Field(pattern="^(pad|stretch)$")
    trained_parameters: int = Field(ge=1)
    all_parameters: int = Field(ge=1)
    training: dict[str, Any]

    def segmenter_config(self) -> SegmenterConfig:
        """What the model is built from."""
        values = {name: getattr(self, name) for name in SegmenterConfig.__dataclass_fields__}
        return SegmenterConfig(**values | {"classes": tuple(self.classes)})


def read_config(folder: Path) -> AdapterConfig:
    """Read and check adapter_config.json.

    Raises:
        WeightsError: it is missing, damaged, another tool's, of another format, or a value is not valid.
    """
    file = folder / CONFIG
    content = read_json(file, _AGAIN)
    _check_format(content, file)
    try:
        # as JSON, not as Python's values, so that messages speak of arrays and objects as the file does
        config = AdapterConfig.model_validate_json(json.dumps(content))
    except ValidationError as error:
        problems = "\n".join(f"  {_explain(problem)}" for problem in error.errors())
        raise WeightsError(f"{file} is damaged or was edited:\n{problems}\n{_AGAIN}") from error
    try:
        build_method(config.method, config.method_options)
    except ConfigError as error:
        own = "" if is_method(config.method) else _OWN
        raise WeightsError(f"{file}: {error} {own}{_AGAIN}") from error
    return config


def read_weights(folder: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of an adapter folder.

    Args:
        folder: the adapter folder.
        sha256: of the file's bytes; None skips the comparison.

    Raises:
        WeightsError: the file is missing, no safetensors file, cut off or changed, or holds numbers that are
            not finite.
    """
    file = folder / TENSORS
    tensors = read_tensors(file, _AGAIN)
    if sha256 is not None and file_digest(file) != sha256:
        raise WeightsError(
            f"{file} is damaged, or not the file that {CONFIG} was saved with: its SHA-256 is not the one "
            f"recorded there. {_AGAIN}"
        )
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise WeightsError(
                f"{file}: {name} holds numbers that are not finite; the training had diverged. "
                "Take another checkpoint, or train anew with a lower --lr."
            )
    return tensors


def check_no_adapter(out: Path) -> None:
    """Refuse an adapter folder as the place of something else: its model would be taken for the new one.

    Raises:
        ConfigError: `out` is an adapter folder, or lies in the best or last one of a run, which the run
            replaces with all that is in it.
    """
    place = out.resolve()
    replaced = [folder for folder in place.parents if folder.name in {BEST, LAST}]
    found = next((folder for folder in (place, *replaced) if (folder / CONFIG).is_file()), None)
    if found is not None:
        where = "holds a model" if found == place else f"lies in {found}, which holds a model"
        raise ConfigError(f"--out {out} {where} already ({CONFIG}). Give another --out, outside of it.")


def explain_wrong_path(path: Path) -> str:
    """Why a path that exists is no adapter folder, and what to give instead."""
    folder = f"Give the adapter folder that holds {CONFIG} and {TENSORS}"
    if path.is_file():
        if path.name in {CONFIG, TENSORS}:
            return f"{path} is a file of an adapter folder. Give the folder, {path.parent}."
        if path.suffix == ".zip":
            return f"{path} is a zip file. Unpack it, and give the folder."
        if path.suffix in {".pth", ".pt", ".bin", ".ckpt", ".pkl"}:
            return f"{path} may hold pickled code, which is never loaded. {folder}."
        return f"{path} is a file. {folder}."
    if (path / LAST / CONFIG).is_file():
        return f"{path} holds no best model, but a last one. Give {path / LAST}."
    if (path / "config.json").is_file():
        return f"{path} looks like a backbone, which goes to --backbone. {folder}."
    if (path / run_files.CONFIG).is_file():
        return (
            f"{path} is a run that has not finished its first validation, so it holds no model yet. "
            f"Go on with it with --resume."
        )
    return f"{path} holds no {CONFIG}, nor does {path / BEST}. {folder}, or a run folder."


def _explain(problem: Any) -> str:  # noqa: ANN401  # pydantic's ErrorDetails, whose home is private
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return f"'{key}' is no key. {did_you_mean(key, AdapterConfig.model_fields)}"
    if problem["type"] == "missing":
        return f"'{key}' is missing"
    return f"{key} is {problem['input']!r}: {problem['msg']}"


def _check_format(content: dict[str, Any], file: Path) -> None:
    if "peft_type" in content:
        raise WeightsError(
            f"{file} belongs to an adapter of the library peft ({content['peft_type']}), which is for other "
            "models. Give an adapter folder of convlora."
        )
    number = content.get("format")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise WeightsError(
            f"{file} is not an adapter configuration of convlora: its 'format' is {number!r}, not a number "
            f"from 1 to {FORMAT}. {_AGAIN}"
        )
    if number > FORMAT:
        raise WeightsError(
            f"{file} was written by convlora {content.get('convlora_version')}, in format {number}; this "
            f"version ({__version__}) reads up to {FORMAT}. Upgrade: pip install -U convlora"
        )
