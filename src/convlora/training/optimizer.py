"""AdamW with linear decay to zero, as in the official code."""

import torch
from torch import nn


def make_optimizer(
    model: nn.Module, lr: float, weight_decay: float, fused: bool = False
) -> torch.optim.AdamW:
    """AdamW over the trained parameters; biases, norms and other vectors are not decayed.

    Args:
        model: knows which of its parameters train.
        lr: peak learning rate.
        weight_decay: of matrices.
        fused: take PyTorch's kernel that passes over the memory once; for parameters that stay on the CPU,
            as on other devices it keeps its step counter elsewhere than a saved state has it.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if _is_matrix(name, p)]
    others = [p for name, p in trained if not _is_matrix(name, p)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, fused=fused)


def keep_counters(optimizer: torch.optim.Optimizer) -> None:
    """Keep AdamW's step counters on the CPU, also those of a state that was read back.

    AdamW looks at each in every step; on the device, where accelerate puts them, it would wait for each.
    """
    for state in optimizer.state.values():
        if "step" in state and not optimizer.defaults.get("fused"):
            state["step"] = state["step"].cpu()


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and name.rpartition(".")[2] != "bias"  # the experts' biases are (experts, r)


def linear_decay(step: int, steps: int) -> float:
    """Factor on the learning rate at `step` of `steps`: 1 at the first, 0 after the last."""
    return max(0.0, 1.0 - step / steps)
