"""State of a run between two steps, in one file that appears whole or not at all; no pickle.

A safetensors file: trained parameters and AdamW's moments; its header carries the rest as JSON. Random states
are not needed: augmentation, noise and points are drawn from the seed and an image's place in the stream.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from convlora.adapters import trainable_parameters
from convlora.errors import WeightsError

FILE = "state.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class Progress:
    """What a run knows besides tensors."""

    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    validations_without_gain: int = 0
    finished: bool = False
    splits: int = 1  # of each micro-batch, because memory ran out


def save_state(folder: Path, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the state; the one before it stays until the new one is complete.

    Args:
        folder: run folder.
        progress: counters and scores.
        model: its trained parameters are saved.
        optimizer: AdamW over these parameters.

    Raises:
        WeightsError: the disk is full or the folder cannot be written; the last state is still there.
    """
    tensors = {f"parameter/{name}": p.detach().cpu() for name, p in trainable_parameters(model).items()}
    tensors |= {name: t.detach().cpu() for name, t in _moments(model, optimizer).items()}
    part = folder / f"{FILE}.part"
    try:
        save_file(tensors, part, metadata={"progress": json.dumps(asdict(progress))})
        part.replace(folder / FILE)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise WeightsError(
            f"{folder / FILE} cannot be written: {error}. The last complete state is kept; make room, then "
            "go on with --resume."
        ) from error


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Put a saved state into a freshly built model and optimizer.

    Returns:
        Progress, or None where the run has saved nothing yet.

    Raises:
        WeightsError: the file is damaged or belongs to another model.
    """
    file = folder / FILE
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            progress = Progress(**json.loads(opened.metadata()["progress"]))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{file} is damaged: {error}. Delete it to start the run anew.") from error
    _restore(model, optimizer, tensors, file)
    return progress


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state
    return {
        f"{kind}/{name}": state[p][kind]
        for name, p in trainable_parameters(model).items()
        for kind in _MOMENTS
        if p in state
    }


@torch.no_grad()
def _restore(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], file: Path
) -> None:
    for name, parameter in trainable_parameters(model).items():
        saved = tensors.get(f"parameter/{name}")
        if saved is None or saved.shape != parameter.shape:
            raise WeightsError(
                f"{file} does not belong to this model: {name} is "
                f"{'missing' if saved is None else f'{tuple(saved.shape)}, not {tuple(parameter.shape)}'}. "
                "Resume with the configuration that the run was started with."
            )
        parameter.copy_(saved)
        moments = {kind: tensors[f"{kind}/{name}"] for kind in _MOMENTS if f"{kind}/{name}" in tensors}
        if moments:
            # AdamW keeps its step counter on the CPU unless fused or capturable
            device = {"step": torch.device("cpu")}
            optimizer.state[parameter] = {
                kind: t.to(device.get(kind, parameter.device)) for kind, t in moments.items()
            }


def trim_log(file: Path, step: int) -> None:
    """Drop the rows of metrics.jsonl that come after `step`: they will be written again."""
    if not file.exists():
        return
    rows = [line for line in file.read_text().splitlines() if _step_of(line) <= step]
    part = file.with_suffix(".part")
    part.write_text("".join(f"{row}\n" for row in rows))
    part.replace(file)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a line cut off by the kill
