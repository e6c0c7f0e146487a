"""Frozen weights in the precision that they are multiplied in."""

import torch
from torch import nn

from convlora.errors import ConfigError

_CAST = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def hold_frozen_in(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Round the frozen weights of linear layers and convolutions to autocast's dtype, in place, for good.

    Autocast rounds them so for every product, and throws the copies away: it keeps those of trained weights
    only. So results under autocast stay the same bit for bit, in less time and half of the memory. What
    autocast computes in float32 (layer norms) and what trains is left alone. Once is enough, and harmless
    to repeat.

    Args:
        model: will only run under autocast to `dtype` from now on.
        dtype: bfloat16 or float16; None for float32, where nothing is to be done.

    Raises:
        ConfigError: the weights are held in another precision already.
    """
    frozen = [
        parameter
        for module in model.modules()
        if isinstance(module, _CAST)
        for parameter in module.parameters(recurse=False)
        if not parameter.requires_grad
    ]
    wanted = dtype or torch.float32
    for parameter in frozen:
        if parameter.dtype not in (torch.float32, torch.float64, wanted):
            raise ConfigError(
                f"The frozen weights of this model are held in {_name(parameter.dtype)} since it was first "
                f"used with that precision; they cannot be used in {_name(wanted)} any more. Load the model "
                "again for the other precision."
            )
    if dtype is not None:
        for parameter in frozen:
            parameter.data = parameter.data.to(dtype)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
