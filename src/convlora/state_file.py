"""State of a training between two steps, in one file that appears whole or not at all; no pickle.

A safetensors file: parameters and AdamW's moments; its header carries the rest, and a SHA-256 of the tensors.
The file before it is kept as well, in case the newest is damaged later.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from convlora.errors import WeightsError
from convlora.output import put_in_place, to_disk
from convlora.run_files import STATE, STATE_BEFORE

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class StateFile(NamedTuple):
    """A state as read: the file, its tensors and its header, or what is wrong with it."""

    file: Path
    tensors: dict[str, Tensor]
    header: dict[str, str]
    damage: str = ""


def write_state(folder: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write the state of a run; the one before it becomes the reserve.

    Args:
        folder: run folder.
        tensors: of `training_tensors`.
        header: further values as text, such as JSON.

    Raises:
        WeightsError: the disk is full or the folder cannot be written; the last state is still there.
    """
    part = folder / f"{STATE}.part"
    held = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    try:
        save_file(held, part, metadata={**header, "sha256": _digest(held)})
        to_disk(part)
        if (folder / STATE).exists():
            put_in_place(folder / STATE, folder / STATE_BEFORE)
        put_in_place(part, folder / STATE)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise WeightsError(
            f"{folder / STATE} cannot be written: {error}. The last complete state is kept; make room, then "
            "go on with --resume."
        ) from error


def read_states(folder: Path) -> Iterator[StateFile]:
    """The states that a run folder holds, the newest first; one that is damaged says how."""
    for file in (folder / STATE, folder / STATE_BEFORE):
        if not file.exists():
            continue
        try:
            yield StateFile(file, *_read(file))
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            yield StateFile(file, {}, {}, f"{file} is damaged: {error}")


def training_tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Parameters and AdamW's moments of them, under names that `restore_training` reads."""
    state = optimizer.state
    tensors: dict[str, Tensor] = {f"parameter/{name}": p for name, p in parameters.items()}
    return tensors | {
        f"{kind}/{name}": state[p][kind] for name, p in parameters.items() for kind in _MOMENTS if p in state
    }


@torch.no_grad()
def restore_training(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, saved: StateFile
) -> None:
    """Put a state into a freshly built model and optimizer.

    Raises:
        WeightsError: it belongs to another model.
    """
    tensors = saved.tensors
    for name, parameter in parameters.items():
        value = tensors.get(f"parameter/{name}")
        if value is None or value.shape != parameter.shape:
            raise WeightsError(
                f"{saved.file} does not belong to this model: {name} is "
                f"{'missing' if value is None else f'{tuple(value.shape)}, not {tuple(parameter.shape)}'}. "
                "Resume with the configuration that the run was started with."
            )
        parameter.copy_(value)
        moments = {kind: tensors[f"{kind}/{name}"] for kind in _MOMENTS if f"{kind}/{name}" in tensors}
        if moments:
            # AdamW keeps its step counter on the CPU unless fused or capturable
            device = {"step": torch.device("cpu")}
            # copies, as what was read lies in the file: Windows replaces none that a process has mapped
            optimizer.state[parameter] = {
                kind: t.to(device.get(kind, parameter.device), copy=True) for kind, t in moments.items()
            }


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(file, framework="pt") as opened:
        header = dict(opened.metadata() or {})
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a dict
    if _digest(tensors) != header["sha256"]:
        raise ValueError("its content is not what was saved (SHA-256)")
    return tensors, header


def _digest(tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
        total.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
