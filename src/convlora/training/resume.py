"""State of a run: the trained parameters, AdamW's moments, and what the run knows besides.

Random states are not needed: augmentation, noise and points are drawn from the seed and an image's place in
the stream.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from convlora.adapters import trainable_parameters
from convlora.errors import ConfigError, WeightsError
from convlora.output import write_text
from convlora.state_file import read_states, restore_training, training_tensors, write_state


@dataclass
class Progress:
    """What a run knows besides tensors."""

    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    validations_without_gain: int = 0
    finished: bool = False
    splits: int = 1  # of each micro-batch, because memory ran out
    scaler: dict[str, float] = field(default_factory=dict)  # of fp16's gradients on a GPU, else empty


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
    header = {"progress": json.dumps(asdict(progress)), "made_with": json.dumps(dict(made_with or {}))}
    write_state(folder, training_tensors(trainable_parameters(model), optimizer), header)


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
    for saved in read_states(folder):
        try:
            progress = Progress(**json.loads(saved.header["progress"]))
            made_with = json.loads(saved.header["made_with"])
        except (KeyError, TypeError, ValueError) as error:
            damaged.append(saved.damage or f"{saved.file} is damaged: {error}")
            continue
        restore_training(trainable_parameters(model), optimizer, saved)
        return State(progress, made_with, "; ".join(damaged))
    if damaged:
        raise WeightsError(
            ". ".join(damaged) + f". Delete the state to start the run anew: rm {folder}/state*.safetensors"
        )
    return None


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


def trim_log(file: Path, step: int) -> None:
    """Drop the rows of metrics.jsonl that come after `step`: they will be written again."""
    if not file.exists():
        return
    rows = [line for line in file.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
    write_text(file, "".join(f"{row}\n" for row in rows))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a line cut off by the kill
