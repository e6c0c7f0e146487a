"""The file that is shared: adapter_config.json + adapter_model.safetensors + model card, strict on load."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from convlora._version import __version__
from convlora.adapters import adapter_state_dict, load_adapter_state_dict
from convlora.backbone.weights import load_sam
from convlora.errors import WeightsError
from convlora.model import Segmenter, SegmenterConfig

CONFIG, TENSORS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
_FORMAT = 1


def save_pretrained(segmenter: Segmenter, folder: Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write the adapter folder; it appears whole or not at all, and is read back and compared.

    Args:
        segmenter: model whose trained parameters are saved; nothing frozen is.
        folder: written anew; an adapter folder that was there is replaced.
        metadata: put into adapter_config.json under 'training': metrics, data fingerprint, command.

    Raises:
        WeightsError: what was written does not read back the same.
    """
    tensors = {name: t.cpu().contiguous() for name, t in adapter_state_dict(segmenter).items()}
    trained, total = segmenter.count_parameters()
    content = {
        "format": _FORMAT,
        "convlora_version": __version__,
        **segmenter.config.to_dict(),
        "trained_parameters": trained,
        "all_parameters": total,
        "training": dict(metadata or {}),
    }
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(tensors, part / TENSORS, metadata={"format": "pt"})
    (part / CONFIG).write_text(json.dumps(content, indent=2) + "\n")
    (part / CARD).write_text(_card(content))
    _compare(tensors, part / TENSORS)
    _replace(part, folder)


def from_pretrained(source: str | Path, backbone: str | None = None) -> Segmenter:
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
    content = read_adapter_config(folder)
    config = _segmenter_config(content, folder / CONFIG)
    loaded = load_sam(backbone or config.backbone)
    if loaded.fingerprint != config.backbone_fingerprint:
        raise WeightsError(
            f"{folder} was trained on the backbone '{config.backbone}' with fingerprint "
            f"{config.backbone_fingerprint}, but '{loaded.source}' has {loaded.fingerprint}. "
            "Give the backbone it was trained on."
        )
    segmenter = Segmenter(loaded.sam, config)
    tensors = _read_tensors(folder / TENSORS)
    try:
        load_adapter_state_dict(segmenter, tensors)
    except WeightsError as error:
        raise WeightsError(f"{folder / TENSORS}: {error}") from error
    return segmenter.eval()


def find_adapter(source: str | Path) -> Path:
    """Adapter folder behind a path or hub id; a run folder stands for its `best`.

    Raises:
        WeightsError: there is none.
    """
    path = Path(source)
    for folder in (path, path / "best"):
        if (folder / CONFIG).is_file():
            return folder
    if path.exists():
        raise WeightsError(
            f"{path} holds no {CONFIG}, nor does {path / 'best'}. Give a run folder that training has "
            "finished at least one validation in, or an adapter folder."
        )
    return _download(str(source))


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read adapter_config.json.

    Raises:
        WeightsError: it is not valid JSON, or of a newer format.
    """
    file = folder / CONFIG
    try:
        content: Any = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{file} is damaged: {error}. Copy the adapter folder again.") from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise WeightsError(f"{file} is not an adapter configuration of convlora (it has no 'format').")
    if content["format"] > _FORMAT:
        raise WeightsError(
            f"{file} was written by convlora {content.get('convlora_version')}, in format "
            f"{content['format']}; this version ({__version__}) reads up to {_FORMAT}. "
            "Upgrade: pip install -U convlora"
        )
    return content


def _segmenter_config(content: Mapping[str, Any], file: Path) -> SegmenterConfig:
    names = SegmenterConfig.__dataclass_fields__
    missing = [name for name in names if name not in content]
    if missing:
        raise WeightsError(f"{file} lacks the keys {', '.join(missing)}. Copy the adapter folder again.")
    values = {name: content[name] for name in names}
    return SegmenterConfig(**values | {"classes": tuple(values["classes"])})


def _read_tensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a dict
    except FileNotFoundError as error:
        raise WeightsError(f"{file} does not exist. Copy the whole adapter folder.") from error
    except SafetensorError as error:
        raise WeightsError(f"{file} is damaged: {error}. Copy the adapter folder again.") from error


def _compare(tensors: Mapping[str, Tensor], file: Path) -> None:
    read = _read_tensors(file)
    if read.keys() != tensors.keys() or any(not read[name].equal(t) for name, t in tensors.items()):
        raise WeightsError(f"{file} does not read back as it was written. Check the disk, then save again.")


def _replace(part: Path, folder: Path) -> None:
    """Put `part` in the place of `folder`; at every moment one of them, or `folder`.old, is whole."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, TENSORS, CARD]))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"'{name}' is no folder that exists here, and no adapter could be fetched from the Hugging Face "
            f"hub under that name:\n  {reason}\nCheck the path; a run folder holds 'best/{CONFIG}'."
        ) from error


def _card(content: Mapping[str, Any]) -> str:
    """Model card with the front matter that the Hugging Face hub reads."""
    training = content["training"]
    metrics = training.get("metrics", {})
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items() if value is not None)
    share = 100 * content["trained_parameters"] / content["all_parameters"]
    return f"""---
library_name: convlora
pipeline_tag: image-segmentation
base_model: {content["backbone"]}
base_model_relation: adapter
license: apache-2.0
---

# {content["method"]} on {content["backbone"]}

Classes: {", ".join(content["classes"])}.
Trained parameters: {content["trained_parameters"]:,} ({share:.2f} %).

```
convlora predict PATH_OF_THIS_FOLDER image.png --out predictions
```

Made by: `{training.get("command", "convlora")}`.
Data fingerprint: {training.get("data_fingerprint", "unknown")}.

| metric (validation) | value |
|---|---|
{rows}
"""
