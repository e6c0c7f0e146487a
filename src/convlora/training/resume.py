"""State of a run between two steps, in one file that appears whole or not at all; no pickle.

A safetensors file: trained parameters and AdamW's moments; its header carries the rest as JSON. Random states
are not needed: augmentation, noise and points are drawn from the seed and an image's place in the stream.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from convlora.adapters import trainable_parameters
from convlora.errors import ConfigError, WeightsError
from convlora.output import to_disk, write_text

FILE, PREVIOUS = "state.safetensors", "state.previous.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class Progress:
    """What a run knows besides tensors."""

    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    validations_without_gain: int = 0
    finished: bool = False
    splits: int = 1  # of each micro-batch, because memory ran out


def save_state(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    made_with: Mapping[str, str] | None = None,
) -> None:
    """Write the state; the one before it is kept as well, in case this one is damaged later.

    Args:
        folder: run folder.
        progress: counters and scores.
        model: its trained parameters are saved.
        optimizer: AdamW over these parameters.
        made_with: fingerprints and versions, compared when the run is resumed.

    Raises:
        WeightsError: the disk is full or the folder cannot be written; the last state is still there.
    """
    tensors = {f"parameter/{name}": p.detach().cpu() for name, p in trainable_parameters(model).items()}
    tensors |= {name: t.detach().cpu() for name, t in _moments(model, optimizer).items()}
    header = {
        "progress": json.dumps(asdict(progress)),
        "made_with": json.dumps(dict(made_with or {})),
        "sha256": _digest(tensors),
    }
    part = folder / f"{FILE}.part"
    try:
        save_file(tensors, part, metadata=header)
        to_disk(part)
        if (folder / FILE).exists():
            (folder / FILE).replace(folder / PREVIOUS)
        part.replace(folder / FILE)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise WeightsError(
            f"{folder / FILE} cannot be written: {error}. The last complete state is kept; make room, then "
            "go on with --resume."
        ) from error


class State(NamedTuple):
    """A state as read.

    Attributes:
        progress: counters and scores.
        made_with: fingerprints and versions of when it was saved.
        skipped: why a newer state was not taken; empty if it was.
    """

    progress: Progress
    made_with: dict[str, str]
    skipped: str = ""


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State | None:
    """Put the newest whole state into a freshly built model and optimizer.

    Returns:
        What was read, or None where the run has saved nothing yet.

    Raises:
        WeightsError: all states are damaged, or the state belongs to another model.
    """
    damaged = []
    for file in (folder / FILE, folder / PREVIOUS):
        if not file.exists():
            continue
        try:
            tensors, header = _read(file)
            progress = Progress(**json.loads(header["progress"]))
            made_with = json.loads(header["made_with"])
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            damaged.append(f"{file} is damaged: {error}")
            continue
        _restore(model, optimizer, tensors, file)
        return State(progress, made_with, "; ".join(damaged))
    if damaged:
        raise WeightsError(
            ". ".join(damaged) + f". Delete the state to start the run anew: rm {folder}/state*.safetensors"
        )
    return None


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata() or {}
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


def check_made_with(saved: Mapping[str, str], now: Mapping[str, str], out: Path) -> list[str]:
    """Compare what a state was made with; versions that differ are returned as warnings.

    Raises:
        ConfigError: the data or the backbone is another.
    """
    changed = [key for key in ("data", "backbone") if saved.get(key) != now.get(key)]
    if changed:
        raise ConfigError(
            f"The {' and the '.join(changed)} changed since the run in {out} was cut off (fingerprint "
            f"{saved.get(changed[0])} then, {now.get(changed[0])} now). Put it back to resume the run, or "
            "start a new one in another --out."
        )
    return [
        f"{key} was {saved[key]} before, and is {now[key]} now: the run goes on, but not bit for bit as if "
        "it had not been cut off"
        for key in now
        if saved.get(key, now[key]) != now[key]
    ]


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
    write_text(file, "".join(f"{row}\n" for row in rows))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a line cut off by the kill
