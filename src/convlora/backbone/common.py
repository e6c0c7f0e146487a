"""Small layers that the encoder, the prompt encoder and the decoder share."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convlora.tracing import being_recorded


def runs_once() -> bool:
    """Whether this is a plain forward pass: no backward pass follows, and no graph is being recorded."""
    return not torch.is_grad_enabled() and not being_recorded()


def add_update(x: Tensor, update: Tensor) -> Tensor:
    """Compute x + update, for x that nobody else reads: in place where that gives the same."""
    same = torch.promote_types(x.dtype, update.dtype) == x.dtype
    return x.add_(update) if same and runs_once() else x + update


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of a (B, C, H, W) map, at each position."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; shape and layout (B, C, H, W) are kept."""
        channels_last = x.permute(0, 2, 3, 1)
        normalised = F.layer_norm(channels_last, self.weight.shape, self.weight, self.bias, self.eps)
        return normalised.permute(0, 3, 1, 2)


_HIDDEN = 12 * 2**20
"""Bytes of hidden values held at a time where there is no backward pass. What is larger than 32 MiB is handed
back to the system by glibc when freed, and its pages are cleared again at every use."""


class MLPBlock(nn.Module):
    """Two linear layers with an activation between them.

    Without a backward pass the tokens go through in parts: the hidden layer, four times as wide as the rest,
    is never held whole, and the activation finds it in the cache. Each token's result is the same.
    """

    def __init__(self, dim: int, hidden_dim: int, activation: nn.Module) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden_dim)
        self.lin2 = nn.Linear(hidden_dim, dim)
        self.act = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map the last axis, (..., dim) to (..., dim)."""
        if not (runs_once() and self._plain()):
            return self.lin2(self.act(self.lin1(x)))
        flat = x.reshape(-1, x.shape[-1])
        first, second = (self._cast(layer, x.device.type) for layer in (self.lin1, self.lin2))
        rows = max(1, _HIDDEN // (self.lin1.out_features * first[0].element_size()))
        parts = [F.linear(self.act(F.linear(part, *first)), *second) for part in flat.split(rows)]
        out = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out.view(*x.shape[:-1], out.shape[-1])

    def _cast(self, layer: nn.Linear, device_type: str) -> tuple[Tensor, Tensor]:
        """Weight and bias in autocast's dtype, once for all parts: autocast would cast them for each."""
        dtype = layer.weight.dtype
        if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
            dtype = torch.get_autocast_dtype(device_type)
        return layer.weight.to(dtype), layer.bias.to(dtype)

    def _plain(self) -> bool:
        """Whether both layers treat every token alone for certain; an adapter may not."""
        return type(self.lin1) is nn.Linear and type(self.lin2) is nn.Linear


class MLP(nn.Module):
    """`depth` linear layers with ReLU between them: SAM's hypernetworks and IoU head."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, depth: int) -> None:
        super().__init__()
        dims = [in_dim, *[hidden_dim] * (depth - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        """Map the last axis, (..., in_dim) to (..., out_dim)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
