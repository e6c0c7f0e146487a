"""Read SAM's weights, strictly: bundled, a Hugging Face folder or hub id, or Meta's `.pth`."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from convlora.backbone.initialise import random_sam
from convlora.backbone.key_maps import from_transformers, to_transformers
from convlora.backbone.meta_file import read_meta
from convlora.backbone.presets import BACKBONES, SamSpec
from convlora.backbone.sam import Sam
from convlora.backbone.spec_io import check_spec, spec_from_config, spec_from_tensors, spec_to_config
from convlora.errors import DataError, WeightsError, WriteError
from convlora.output import write_text, write_whole
from convlora.settings import expand_user, no_path
from convlora.weight_files import fetch, first_line, read_json, read_tensors

BUNDLED = Path(__file__).parent / "sam_tiny"
_CONFIG, _TENSORS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_PRECISIONS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class LoadedSam:
    """A SAM with its weights and where they came from."""

    sam: Sam
    source: str
    fingerprint: str


def load_sam(source: str | Path) -> LoadedSam:
    """Load a SAM.

    Args:
        source: `sam-tiny` (bundled); a hub id such as `facebook/sam-vit-base`; a folder with config.json and
            model.safetensors as transformers writes it; Meta's `.pth`, or one with its names that was trained
            on (`meta_file`); or `random:NAME`, the shape of a preset with random weights (a baseline).

    Returns:
        The model in fp32 on the CPU, with a fingerprint of its weights.

    Raises:
        WeightsError: the source does not exist, is damaged, or its tensors do not fit.
    """
    name = locate(source)
    if name.startswith("random:"):
        sam = random_sam(_preset(name.removeprefix("random:")))
    elif name == "sam-tiny":
        sam = _load_folder(BUNDLED)
    elif Path(name).is_dir():
        sam = _load_folder(Path(name))
    elif Path(name).suffix in {".pth", ".pt"}:
        tensors = read_meta(Path(name))
        sam = _assemble(spec_from_tensors(tensors, Path(name)), tensors, Path(name))
    elif Path(name).is_file():
        raise WeightsError(
            f"{name} is a file. Give the folder that holds {_CONFIG} and {_TENSORS}, or one of Meta's "
            "sam_vit_*.pth."
        )
    else:
        sam = _load_folder(_download(name))
    return LoadedSam(sam, name, fingerprint(sam.state_dict()))


def locate(source: str | Path) -> str:
    """A source of `load_sam` that means the same in every working folder: a local path is made absolute.

    Raises:
        WeightsError: nothing can have this name.
    """
    name = expand_user(str(source))
    if wrong := no_path(name):
        raise WeightsError(f"The backbone {wrong}")
    named = name == "sam-tiny" or name.startswith("random:")  # whatever folder is called so
    return name if named or not Path(name).exists() else str(Path(name).absolute())


def save_sam(sam: Sam, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write config.json and model.safetensors under transformers' names; `SamModel` loads them too.

    Raises:
        WeightsError: they cannot be written; a file that was there is kept.
    """
    depth = sam.spec.decoder.iou_head_depth
    tensors = {
        to_transformers(name, depth): tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in sam.state_dict().items()
    }
    try:
        write_whole(folder / _TENSORS, lambda part: save_file(tensors, part, metadata={"format": "pt"}))
        write_text(folder / _CONFIG, json.dumps(spec_to_config(sam.spec), indent=2) + "\n")
    except (WriteError, DataError, SafetensorError) as error:
        reason = error.__cause__ or error  # of our own: what the system said
        raise WeightsError(
            f"{folder} cannot be written: {reason}. What was there before is kept; make room, or save "
            "elsewhere."
        ) from error


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Hash that tells one set of weights from another, the same for every file format they came from.

    Of each tensor its name, shape and 1,024 to 2,047 evenly spaced values (in fp32; all, if there are fewer)
    are hashed, so that it takes milliseconds even for ViT-H.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        flat = tensors[name].detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 1024)].to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _preset(name: str) -> SamSpec:
    if name not in BACKBONES:
        raise WeightsError(f"random:{name} names no preset. The presets are: {', '.join(BACKBONES)}.")
    return BACKBONES[name]


def _download(name: str) -> Path:
    """Fetch a hub repository's configuration and tensors into the cache."""
    try:
        return fetch(name, [_CONFIG, "*.safetensors", _INDEX])
    except OSError as error:
        raise WeightsError(
            f"The backbone '{name}' is not a preset ({', '.join(BACKBONES)}), a folder or a file that exists "
            f"here, and it could not be fetched from the Hugging Face hub:\n  {error}\n"
            "Check the spelling and the network. On a machine without network, download the folder elsewhere "
            "(config.json and model.safetensors) and give its path."
        ) from error


def _load_folder(folder: Path) -> Sam:
    config_file = folder / _CONFIG
    if not config_file.exists():
        raise WeightsError(
            f"{folder} holds no {_CONFIG}. A backbone folder has {_CONFIG} and {_TENSORS}, as written by "
            "transformers' save_pretrained."
        )
    config = read_json(config_file, "Download it again.")
    spec = spec_from_config(config, config_file)
    depth = spec.decoder.iou_head_depth
    tensors: dict[str, Tensor] = {}
    for name, tensor in _read_safetensors(folder).items():
        ours = from_transformers(name, depth)
        if ours in tensors and not torch.equal(tensors[ours], tensor):
            raise WeightsError(
                f"{folder} holds {ours} under two names, the second {name}, with other values; in SAM they "
                "are one tensor. Remove the wrong one, or download the folder again."
            )
        tensors[ours] = tensor
    return _assemble(spec, tensors, folder)


def _read_safetensors(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in _tensor_files(folder):
        tensors |= read_tensors(file, "Download the whole backbone folder again.")
    return tensors


def _tensor_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that the index lists."""
    index = folder / _INDEX
    if not index.exists():
        pickles = [] if (folder / _TENSORS).exists() else sorted(folder.glob("*.bin"))
        if pickles:
            raise WeightsError(
                f"{folder} holds {pickles[0].name}, a pickle, which can run code and is not opened, and no "
                f"{_TENSORS}. Download the safetensors files of the same model."
            )
        return [folder / _TENSORS]
    shards = read_json(index, "Download it again.").get("weight_map")
    names = set(shards.values()) if isinstance(shards, dict) else set()
    if not names or not all(isinstance(name, str) for name in names):
        raise WeightsError(f"{index} lists no files under 'weight_map'. Download it again.")
    return [folder / name for name in sorted(names)]


def _assemble(spec: SamSpec, tensors: Mapping[str, Tensor], source: Path) -> Sam:
    check_spec(spec, source)
    try:
        with torch.device("meta"):
            sam = Sam(spec)
    except (ValueError, RuntimeError, ZeroDivisionError, AssertionError) as error:
        raise WeightsError(
            f"{source} describes a SAM that cannot be built: {first_line(error)}. Download it again."
        ) from error
    check_tensors(sam.state_dict(), tensors, str(source))
    quantised = [name for name, t in tensors.items() if t.dtype not in _PRECISIONS]
    if quantised:
        raise WeightsError(
            f"{source} holds {tensors[quantised[0]].dtype} in {len(quantised)} tensors, "
            f"first {quantised[0]}. Without their scales these are no weights: give the model in "
            "float32, float16 or bfloat16."
        )
    broken = [name for name, t in tensors.items() if not t.isfinite().all()]
    if broken:
        raise WeightsError(
            f"{source} holds values that are no finite numbers in {len(broken)} tensors, first {broken[0]}. "
            "Download it again."
        )
    sam.load_state_dict({name: t.float() for name, t in tensors.items()}, assign=True)
    return sam.requires_grad_(True)


def check_tensors(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor], source: str) -> None:
    """Compare names and shapes.

    Raises:
        WeightsError: any is missing, unexpected or of another shape; the message lists the groups.
    """
    misshapen = [
        f"{name}: {tuple(got[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & got.keys())
        if got[name].shape != wanted[name].shape
    ]
    groups = {
        "missing": sorted(wanted.keys() - got.keys()),
        "unexpected": sorted(got.keys() - wanted.keys()),
        "of another shape": misshapen,
    }
    report = [f"  {len(names)} {kind}: {_some(names)}" for kind, names in groups.items() if names]
    if report:
        raise WeightsError(
            f"The tensors of {source} do not fit; nothing was loaded.\n" + "\n".join(report) + "\n"
            "Check that the file belongs to this model and is complete."
        )


def _some(names: list[str], limit: int = 6) -> str:
    more = f", and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
