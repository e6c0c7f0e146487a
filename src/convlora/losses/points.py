"""Point sampling for mask losses.

Kirillov et al., PointRend, CVPR 2020; as used by Cheng et al., Mask2Former, CVPR 2022.
Points are (x, y) in [0, 1], so masks and labels may differ in resolution.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from convlora.errors import ConfigError
from convlora.losses.common import IGNORE_INDEX


class PointSampling(NamedTuple):
    """How many points a mask is compared at, and how they are chosen; see `uncertain_points`."""

    num_points: int
    oversample_ratio: float
    importance_ratio: float
    generator: torch.Generator | None

    def check(self) -> None:
        """Raise a ConfigError where a value is out of range."""
        if self.num_points < 1 or self.oversample_ratio < 1 or not 0 <= self.importance_ratio <= 1:
            raise ConfigError(
                f"Point sampling got num_points {self.num_points}, oversample_ratio {self.oversample_ratio}, "
                f"importance_ratio {self.importance_ratio}; they must be 1 or more, 1 or more, in [0, 1]."
            )

    def uniform(self, sets: int, points: int, device: torch.device) -> Tensor:
        """Return `sets` sets of random points, (sets, points, 2)."""
        return torch.rand(sets, points, 2, generator=self.generator, device=device)


def sample_logits(logits: Tensor, points: Tensor) -> Tensor:
    """Interpolate (N, C, h, w) at points (N, P, 2), bilinear with zeros beyond the edge: (N, C, P)."""
    grid = (2 * points - 1).to(logits)[:, :, None]
    return F.grid_sample(logits, grid, mode="bilinear", align_corners=False)[..., 0]


def label_shares(target: Tensor, image: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """Share of each label at each point: its one-hot map, interpolated as by `sample_logits`.

    Reads the four labels around a point, so no one-hot map is built.

    Args:
        target: (B, H, W) int64.
        image: (N,) index into B for each set of points.
        points: (N, P, 2).
        labels: (N, C) or (1, C), the labels asked for in each set.

    Returns:
        (N, C, P) in [0, 1].
    """
    height, width = target.shape[1:]
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    labels_of = target.flatten()  # `take` would do, but MPS has none
    shares = points.new_zeros(points.shape[0], labels.shape[1], points.shape[1])
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        pixel = row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
        found = labels_of[image[:, None] * (height * width) + pixel]
        weight = (1 - (x - column).abs()) * (1 - (y - row).abs()) * inside
        shares += weight[:, None] * (found[:, None] == labels[:, :, None])
    return shares


def labelled(target: Tensor, image: Tensor, points: Tensor) -> Tensor:
    """Whether no ignored pixel takes part in a point, (N, P) bool; arguments as of `label_shares`."""
    ignored = torch.full((1, 1), IGNORE_INDEX, device=target.device)
    return label_shares(target, image, points, ignored)[:, 0] == 0


@torch.no_grad()
def uncertain_points(masks: Tensor, target: Tensor, image: Tensor, sampling: PointSampling) -> Tensor:
    """Choose points of each mask where its logit is nearest to zero, and some anywhere.

    Draws `oversample_ratio` * `num_points` candidates and keeps the most uncertain ones, as many as the share
    `importance_ratio` of `num_points`; the rest are new uniform points. Differs from Mask2Former where labels
    are ignored: such points are the last to be chosen.

    Args:
        masks: (N, h, w) logits.
        target: (B, H, W) int64.
        image: (N,) index into B of each mask.
        sampling: how many points.

    Returns:
        (N, num_points, 2).
    """
    count, device = len(masks), masks.device
    candidates = sampling.uniform(count, int(sampling.num_points * sampling.oversample_ratio), device)
    certainty = sample_logits(masks[:, None], candidates)[:, 0].abs()
    certainty = certainty.masked_fill(~labelled(target, image, candidates), torch.inf)
    num_uncertain = int(sampling.importance_ratio * sampling.num_points)
    chosen = certainty.topk(num_uncertain, dim=1, largest=False).indices
    points = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
    rest = sampling.num_points - num_uncertain
    return torch.cat([points, sampling.uniform(count, rest, device)], dim=1) if rest else points
