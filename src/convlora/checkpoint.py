"""The file that is shared: adapter_config.json + adapter_model.safetensors + model card, strict on load."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from convlora._version import __version__
from convlora.adapter_folder import (
    CARD,
    CONFIG,
    FORMAT,
    TENSORS,
    explain_wrong_path,
    read_config,
    read_weights,
)
from convlora.adapters import adapter_state_dict, load_adapter_state_dict
from convlora.backbone.presets import BACKBONES
from convlora.backbone.weights import LoadedSam, load_sam
from convlora.errors import ConfigError, TargetError, WeightsError
from convlora.model import SegmentationModel, Segmenter, SegmenterConfig
from convlora.output import find_folder, part_of, replace_folder, to_disk, write_utf8
from convlora.randomness import seeded
from convlora.run_files import BEST
from convlora.settings import expand_user, no_path
from convlora.unet import UNET, Unet
from convlora.weight_files import fetch, file_digest

#: Folder of an adapter folder that holds its own backbone, where a method was merged into it.
MERGED = "backbone"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def save_pretrained(
    segmenter: SegmentationModel, folder: str | Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write the adapter folder; it appears whole or not at all, and is read back and compared.

    Args:
        segmenter: model whose trained parameters are saved; nothing frozen is.
        folder: written anew; an adapter folder that was there is replaced, any other is refused.
        metadata: put into adapter_config.json under 'training': metrics, data fingerprint, command.

    Raises:
        WeightsError: something else is in that place, the disk is full or the place not writable (what was
            there is kept), or what was written does not read back the same.
        ConfigError: the metadata holds what JSON cannot.
    """
    folder = Path(expand_user(str(folder)))
    if wrong := no_path(str(folder)):
        raise WeightsError(f"The model's folder {wrong}")
    _check_replaceable(folder)
    try:
        json.dumps(metadata)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "metadata must hold what JSON can: text, numbers, True, None, lists and mappings; "
            f"{str(error)[:200]}. Convert it, as by float(...) or .tolist()."
        ) from error
    tensors = {name: t.cpu().contiguous() for name, t in adapter_state_dict(segmenter).items()}
    part = part_of(folder)
    try:
        _write(segmenter, tensors, part, metadata)
        _compare(tensors, part)
        replace_folder(part, folder)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{folder} cannot be written: {error}. What was there before is kept; make room, or save "
            "elsewhere."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_replaceable(folder: Path) -> None:
    """Refuse what is no adapter folder: all that is in the place goes when it is replaced."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise WeightsError(
            f"{folder} holds other things than a model ({CONFIG} is not there), which would be lost. Save to "
            "a folder that is new or empty."
        )
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"{folder} is a file. Save to a folder that is new or empty.")


def _write(
    segmenter: SegmentationModel, tensors: dict[str, Tensor], part: Path, metadata: Mapping[str, Any] | None
) -> None:
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(tensors, part / TENSORS, metadata={"format": "pt"})
    trained, total = segmenter.count_parameters()
    content = {
        "format": FORMAT,
        "convlora_version": __version__,
        **segmenter.config.to_dict(),
        "trained_parameters": trained,
        "all_parameters": total,
        "sha256": file_digest(part / TENSORS),
        "training": dict(metadata or {}),
    }
    write_utf8(part / CONFIG, json.dumps(content, indent=2) + "\n")
    write_utf8(part / CARD, _card(content))
    for file in part.iterdir():
        to_disk(file)


def from_pretrained(source: str | Path, backbone: str | None = None) -> SegmentationModel:
    """Load a fine-tuned model.

    Args:
        source: adapter folder, run folder (its `best` is taken), or hub id.
        backbone: where to find the backbone now, if it is not where it was in training.

    Returns:
        The model in evaluation mode, on the CPU in fp32.

    Raises:
        WeightsError: a file is missing or damaged, was written by a newer version, or does not fit; or the
            backbone's weights are not those of the training.
    """
    folder = find_adapter(source)
    content = read_config(folder)
    config = content.segmenter_config()
    try:
        segmenter = _build(config, backbone, folder)
    except (ConfigError, TargetError) as error:
        raise WeightsError(f"{folder / CONFIG} does not fit its backbone: {error}") from error
    tensors = read_weights(folder, content.sha256)
    try:
        load_adapter_state_dict(segmenter, tensors)
    except WeightsError as error:
        raise WeightsError(
            f"{folder / TENSORS} does not fit {CONFIG} beside it, which says method {config.method}, options "
            f"{dict(config.method_options)}, head {config.head}, {len(config.classes)} classes.\n{error}"
        ) from error
    segmenter.largest_image = _largest_image(content.training)
    return segmenter.eval()


def _largest_image(training: Mapping[str, Any]) -> tuple[int, int] | None:
    """(H, W) as a training has recorded it; older ones have not."""
    match training.get("largest_image"):
        case [int(height), int(width)] if height > 0 and width > 0:
            return height, width
    return None


def _build(config: SegmenterConfig, backbone: str | None, folder: Path) -> SegmentationModel:
    """The model as it was before training, but for what is new in it: that is in the adapter file."""
    if config.backbone == UNET:
        with seeded(0):
            return Unet(config)
    loaded = load_backbone(config.backbone, folder, backbone)
    if loaded.fingerprint != config.backbone_fingerprint:
        raise WeightsError(
            f"{folder} was trained on the backbone '{config.backbone}' with fingerprint "
            f"{config.backbone_fingerprint}, but '{loaded.source}' has {loaded.fingerprint}. "
            "Give the backbone it was trained on with --backbone (in Python backbone=)."
        )
    with seeded(0):
        return Segmenter(loaded.sam, config)


def find_adapter(source: str | Path) -> Path:
    """Adapter folder behind a path or hub id; a run folder stands for its `best`.

    Raises:
        WeightsError: there is none.
    """
    path = Path(expand_user(str(source)))
    if wrong := no_path(str(path)):
        raise WeightsError(f"The model {wrong}")
    for folder in (path, find_folder(path / BEST)):
        if (folder / CONFIG).is_file():
            return folder
    if path.exists():
        raise WeightsError(explain_wrong_path(path))
    return _download(str(source))


def load_backbone(recorded: str, folder: Path, given: str | None = None) -> LoadedSam:
    """Load the backbone of an adapter folder.

    Args:
        recorded: what adapter_config.json says; a folder of this name in the adapter folder comes first.
        folder: adapter folder.
        given: what the user says instead, if anything.

    Raises:
        WeightsError: it cannot be loaded.
    """
    source = given or recorded
    if given is None and recorded not in BACKBONES and (folder / recorded).is_dir():
        source = str(folder / recorded)
    try:
        return load_sam(source)
    except WeightsError as error:
        raise WeightsError(
            f"The backbone of {folder} cannot be loaded. {error}\n"
            "If it lies elsewhere now, say where with --backbone (in Python backbone=)."
        ) from error


def _compare(tensors: Mapping[str, Tensor], folder: Path) -> None:
    read = read_weights(folder)
    if read.keys() != tensors.keys() or any(not read[name].equal(t) for name, t in tensors.items()):
        raise WeightsError(
            f"{folder / TENSORS} does not read back as it was written. Check the disk, then save again."
        )


def _download(name: str) -> Path:
    try:
        return fetch(name, [CONFIG, TENSORS, CARD, f"{MERGED}/*"])
    except OSError as error:
        raise WeightsError(
            f"'{name}' is no folder that exists here, and no adapter could be fetched from the Hugging Face "
            f"hub under that name:\n  {error}\nCheck the path; a run folder holds '{BEST}/{CONFIG}'."
        ) from error


def _cell(value: object) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:.4f}" if number else " ".join(str(value).split()).replace("|", "\\|")


def _card(content: Mapping[str, Any]) -> str:
    """Model card with the front matter that the Hugging Face hub reads."""
    training = content["training"]
    metrics = training.get("metrics")
    listed = metrics.items() if isinstance(metrics, Mapping) else ()
    rows = "\n".join(f"| {name} | {_cell(value)} |" for name, value in listed if value is not None)
    share = 100 * content["trained_parameters"] / content["all_parameters"]
    backbone = content["backbone"]
    hub = bool(_HUB_ID.fullmatch(backbone)) and not Path(backbone).exists()
    base = f"base_model: {backbone}\nbase_model_relation: adapter\n" if hub else ""
    return f"""---
library_name: convlora
pipeline_tag: image-segmentation
{base}license: apache-2.0
---

# {content["method"]} on {backbone if hub else Path(backbone).name}

Classes: {", ".join(content["classes"])}.
Trained parameters: {content["trained_parameters"]:,} ({share:.2f} %).

```
convlora predict PATH_OF_THIS_FOLDER image.png --out predictions
```

{f"Made by: `{training['command']}`." if training.get("command") else ""}
Data fingerprint: {training.get("data_fingerprint", "unknown")}.

| metric (validation) | value |
|---|---|
{rows}
"""
