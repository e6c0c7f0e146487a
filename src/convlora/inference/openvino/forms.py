"""Forms of layers that OpenVINO computes fast, in place of those that PyTorch does, while a model is traced.

Each is equal to the layer's own but for rounding. Measured on blocks of ViT-B at 1024 px with two cores:

- attention: an explicit bias, which the plugin fuses into its attention kernel, instead of extra channels
  (a global block in float32: 0.9 of the time; in bfloat16 the same). Where the bias is large, some queries
  at a time, for the memory;
- layer norm on a matrix: on a map the plugin turns to channels-first and back (a few ms of 65, bfloat16);
- an update that can be merged is merged.

Low-rank updates that cannot (Conv-LoRA's) have their own form for tracing in `adapters.lora`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convlora.adapters.base import Mergeable
from convlora.backbone.attention import Attention

_LOGITS = 2**26
"""Logits with a bias at a time: 256 MiB in float32."""


@contextmanager
def fast_forms(model: nn.Module) -> Iterator[None]:
    """Let the layers of `model` compute in these forms within the context; afterwards all is as before."""
    changed: list[tuple[nn.Module, str]] = []
    try:
        for module in model.modules():
            for name, form in _forms(module).items():
                setattr(module, name, form)  # on the object, before the method of its class
                changed.append((module, name))
        yield
    finally:
        for module, name in changed:
            delattr(module, name)


def _forms(module: nn.Module) -> dict[str, Callable[..., object]]:
    if isinstance(module, Attention):
        return {"_attend_with_positions": partial(attend_with_bias, module)}
    if isinstance(module, nn.LayerNorm):
        return {"forward": partial(normalise_rows, module)}
    if isinstance(module, nn.Module) and isinstance(module, Mergeable):
        merged = module.merged().requires_grad_(False).eval()
        return {"forward": _forms(merged).get("forward", merged.forward)}
    return {}


def normalise_rows(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """`layer` on (..., C), as a matrix."""
    rows = x.reshape(-1, x.shape[-1])
    return F.layer_norm(rows, layer.normalized_shape, layer.weight, layer.bias, layer.eps).view(x.shape)


def attend_with_bias(layer: Attention, q: Tensor, k: Tensor, v: Tensor, H: int, W: int) -> Tensor:
    """Attention of the layer with its position logits as a bias.

    Args:
        layer: has relative positions.
        q: (B, heads, N, d), unscaled; the first H W of the N are the map, the others have no position.
        k: (B, heads, N, d).
        v: (B, heads, N, d).
        H: rows of the map.
        W: columns.

    Returns:
        (B, heads, N, d).
    """
    N, tokens = q.shape[2], q.shape[2] - H * W
    by_row, by_column = layer._position_logits(q[:, :, : H * W], H, W)
    if tokens:
        by_row, by_column = (F.pad(logits, (0, 0, 0, tokens)) for logits in (by_row, by_column))
    parts = -(-q.shape[0] * q.shape[1] * N * N // _LOGITS)
    step = -(-N // parts)
    out = []
    for start in range(0, N, step):
        some = slice(start, start + step)
        bias = (by_row[:, :, some, :, None] + by_column[:, :, some, None, :]).flatten(3)
        if tokens:
            bias = F.pad(bias, (0, tokens))
        out.append(F.scaled_dot_product_attention(q[:, :, some], k, v, attn_mask=bias))
    return out[0] if len(out) == 1 else torch.cat(out, dim=2)
