"""Checkpoints with the names of Meta's code: theirs, and those of tools that train on with it (MedSAM)."""

from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from convlora.errors import WeightsError
from convlora.weight_files import first_line, refuse_pointer

_FIRST = "image_encoder.patch_embed.proj.weight"


def read_meta(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a `.pth`, under Meta's names.

    Beside a plain table of tensors, as Meta's, it may hold a training's: one table among other values (the
    optimizer's, an epoch), and one start before all names (`module.` of DDP, `sam.`). Names without that
    start are kept as they are, so that nothing is dropped in silence.

    Raises:
        WeightsError: it is missing or damaged, or holds anything else.
    """
    refuse_pointer(file)
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"{file} does not exist. Give the path of one of Meta's sam_vit_*.pth.") from error
    except Exception as error:  # torch.load raises anything from EOFError to UnpicklingError
        raise WeightsError(
            f"{file} cannot be read as tensors ({first_line(error)}). It is damaged, or not one of Meta's "
            "sam_vit_*.pth; for safety, files that hold anything but tensors are refused."
        ) from error
    return _without_start(_only_table(content, file))


def _only_table(content: object, file: Path) -> dict[str, Tensor]:
    """The table of tensors: the content itself, or the only one in it."""
    if _is_table(content):
        return content
    inner = content.items() if isinstance(content, dict) else ()
    tables = {str(key): value for key, value in inner if _is_table(value)}
    if len(tables) == 1:
        return next(iter(tables.values()))
    found = f"{len(tables)} tables of tensors ({', '.join(tables)})" if tables else "no table of tensors"
    raise WeightsError(
        f"{file} holds {found}; it must hold one, with the names of Meta's sam_vit_*.pth. Save that one by "
        "itself: torch.save(model.state_dict(), FILE)."
    )


def _is_table(value: object) -> TypeGuard[dict[str, Tensor]]:
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())


def _without_start(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what stands before the name that every SAM has, if there is one such name."""
    starts = [name.removesuffix(_FIRST) for name in tensors if name.endswith(_FIRST)]
    if len(starts) != 1:
        return tensors
    renamed = {name.removeprefix(starts[0]): tensor for name, tensor in tensors.items()}
    return renamed if len(renamed) == len(tensors) else tensors  # else one would take the place of another
