"""Mean attention distance of every head (Dosovitskiy et al., ICLR 2021, figure 7)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from convlora.backbone.attention import Attention
from convlora.backbone.image_encoder import Block, ImageEncoder

Distances = dict[int, list[Tensor]]


@contextmanager
def watch_distances(encoder: ImageEncoder, inside: Tensor) -> Iterator[Distances]:
    """Record, of each block, the mean distance of every head, while images go through one by one.

    A head's distance is the mean over queries of sum_k attention(q, k) |q - k|, in pixels of the model's
    input. Queries in padding, of the image or of a window, are left out; keys are all that the model attends
    to. In a windowed block it is at most the window's diagonal. A block that is run in another way (VPT's
    tokens) records nothing.

    Args:
        encoder: the blocks' attention is watched.
        inside: (H, W) bool, positions of the map that lie in the image; changed in place for every image.

    Yields:
        Block -> list of (heads,) float32, one for each image.
    """
    found: Distances = {}
    hooks = []
    for i, block in enumerate(encoder.blocks):
        assert isinstance(block, Block)
        record = partial(_record, found, i, block, inside, encoder.spec.patch_size)
        # a method may have put a layer of its own around it
        attention = next(module for module in block.attn.modules() if isinstance(module, Attention))
        hooks.append(attention.register_forward_pre_hook(record))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _record(
    found: Distances,
    index: int,
    block: Block,
    inside: Tensor,
    patch: int,
    attention: Attention,
    inputs: tuple[Tensor],
) -> None:
    (x,) = inputs
    seen = block.cut(inside[None, :, :, None].to(x.device, x.dtype)).flatten(1) > 0  # (windows, N)
    distance = patch * pairwise_distances(x.shape[1], x.shape[2]).to(x.device)
    total = torch.zeros(attention.num_heads, device=x.device)
    start = 0
    for part in attention.probabilities(x):
        end = start + part.shape[2]
        per_query = (part * distance[start:end]).sum(-1)  # (windows, heads, queries)
        total += (per_query * seen[:, None, start:end]).sum((0, 2))
        start = end
    found.setdefault(index, []).append((total / seen.sum()).cpu())


def pairwise_distances(H: int, W: int) -> Tensor:
    """Euclidean distance between all positions of a map, (H W, H W) float32, in steps of the grid."""
    rows, columns = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1).float()
    return torch.cdist(places, places)
