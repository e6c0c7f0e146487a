"""Fold a method's update into the backbone's weights: a plain SAM with the trained decoder beside it."""

import dataclasses
import shutil
from pathlib import Path

import torch

from convlora.adapter_folder import check_no_adapter, read_config
from convlora.adapters import check_mergeable, merge, trainable_parameters
from convlora.backbone.sam import Sam
from convlora.backbone.weights import fingerprint, save_sam
from convlora.checkpoint import (
    MERGED,
    find_adapter,
    from_pretrained,
    load_backbone,
    save_pretrained,
)
from convlora.data.splits import read_record
from convlora.errors import ConfigError, WeightsError
from convlora.model import SegmentationModel, Segmenter
from convlora.output import check_folder, part_of, replace_folder
from convlora.run_files import RECORD

_TOLERANCE = 1e-3  # of the largest logit; float32 rounding is 3e-6 at ViT-H (benchmarks/merge_rounding.py)


def merge_run(source: str | Path, out: Path, backbone: str | None = None) -> Path:
    """Write a merged model.

    `out` becomes an adapter folder of the method 'decoder-only' (decoder and head), with the merged SAM in
    `out/backbone` under transformers' names and the run's split.json. It predicts what the source predicts,
    without the method's cost, and the backbone can be loaded by other tools. What was written is read back
    and compared.

    Args:
        source: run folder, adapter folder or hub id.
        out: new folder.
        backbone: where the backbone is now, if not where it was in training.

    Returns:
        `out`.

    Raises:
        ConfigError: the method cannot be merged, there is nothing to merge, or `out` is not a new folder.
        DataError: the run's split.json is damaged.
        WeightsError: the model cannot be loaded, or the merged one cannot be written or differs.
    """
    check_folder(out, "--out")
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"--out {out} holds files already. Give a new folder.")
    check_no_adapter(out)
    folder = find_adapter(source)
    model = _mergeable(from_pretrained(folder, backbone), folder)
    size = model.config.image_size
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = model(image).mask_logits
    merge(model.encoder)
    part = part_of(out)
    shutil.rmtree(part, ignore_errors=True)
    sam = load_backbone(model.config.backbone, folder, backbone).sam
    try:
        _write(model, sam, part, folder)
        with torch.no_grad():
            _compare(wanted, from_pretrained(part)(image).mask_logits, model.config.method)
        replace_folder(part, out)
    except OSError as error:
        raise WeightsError(
            f"{out} cannot be written: {error}. Make room, or choose another place."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return out


def _mergeable(model: SegmentationModel, folder: Path) -> Segmenter:
    if not isinstance(model, Segmenter):
        raise ConfigError(f"{folder} holds a {model.config.backbone}, which has no method to merge.")
    if not model.method.trains_encoder:
        raise ConfigError(
            f"{folder} was trained with {model.config.method}, which leaves the encoder as it is: there is "
            "nothing to merge. Use it as it is, with its backbone."
        )
    try:
        check_mergeable(model.encoder)
    except ConfigError as error:
        raise ConfigError(
            f"{folder} was trained with {model.config.method}, which no plain SAM equals. {error} Every "
            "command takes it as it is."
        ) from error
    return model


def _write(model: Segmenter, sam: Sam, part: Path, folder: Path) -> None:
    sam.image_encoder.load_state_dict(model.encoder.state_dict())
    config = dataclasses.replace(
        model.config,
        backbone=MERGED,
        backbone_fingerprint=fingerprint(sam.state_dict()),
        method="decoder-only",
        method_options={},
    )
    save_sam(sam, part / MERGED)  # before the decoder gets this head's tokens
    plain = Segmenter(sam, config)
    trained = trainable_parameters(plain)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                trained[name].copy_(parameter)
    training = read_config(folder).training
    merged = {"merged_from": str(folder), "merged_method": model.config.method}
    save_pretrained(plain, part / "adapter", {**training, **merged})
    for file in (part / "adapter").iterdir():
        file.rename(part / file.name)
    (part / "adapter").rmdir()
    record = read_record(folder)
    if record is not None:  # so that `evaluate` knows the training images
        shutil.copyfile(record.file, part / RECORD)


def _compare(wanted: torch.Tensor, got: torch.Tensor, method: str) -> None:
    difference = float((wanted - got).abs().max() / wanted.abs().max())
    if not difference < _TOLERANCE:
        raise WeightsError(
            f"The merged model differs from that of {method} by {difference:.1e} of its largest logit; at "
            f"most {_TOLERANCE:.0e} is rounding. Nothing was written; keep the adapter beside its backbone."
        )
