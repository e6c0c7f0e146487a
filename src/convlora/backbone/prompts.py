"""SAM's prompt encoder: positional encoding, clicks, boxes, masks, and the embeddings that stand for none.

Fine-tuning uses only `image_positions` and `no_mask`; pretraining prompts with clicks and boxes.
"""

import math

import torch
from torch import Tensor, nn

from convlora.backbone.common import LayerNorm2d
from convlora.backbone.presets import DecoderSpec


class PositionEmbeddingRandom(nn.Module):
    """Random Fourier features of a 2-D position (Tancik et al. 2020)."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, num_features))

    def forward(self, coordinates: Tensor) -> Tensor:
        """Encode (x, y) in [0, 1]: (..., 2) to (..., 2 * num_features)."""
        matrix = self.positional_encoding_gaussian_matrix
        # fp32 even under autocast: the phases run to many turns
        with torch.autocast(coordinates.device.type, enabled=False):
            phase = 2 * math.pi * ((2 * coordinates.to(matrix.dtype) - 1) @ matrix)
            return torch.cat([phase.sin(), phase.cos()], dim=-1)


class PromptEncoder(nn.Module):
    """Clicks, boxes and masks to embeddings; names of parameters are those of Meta's checkpoints.

    Args:
        spec: numbers of the decoder; all embeddings have `spec.dim` channels.
    """

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.pe_layer = PositionEmbeddingRandom(spec.dim // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, spec.dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, spec.dim)
        channels = spec.mask_input_channels
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, channels // 4, kernel_size=2, stride=2),
            LayerNorm2d(channels // 4),
            nn.GELU(),
            nn.Conv2d(channels // 4, channels, kernel_size=2, stride=2),
            LayerNorm2d(channels),
            nn.GELU(),
            nn.Conv2d(channels, spec.dim, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, spec.dim)

    def image_positions(self, height: int, width: int) -> Tensor:
        """Positional encoding of the embedding's cells: (1, dim, height, width)."""
        device = self.no_mask_embed.weight.device
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
        return self.pe_layer(grid).permute(2, 0, 1)[None]

    def no_mask(self) -> Tensor:
        """The learned dense embedding that stands for 'no mask given': (1, dim, 1, 1)."""
        return self.no_mask_embed.weight[:, :, None, None]

    def embed_points(self, points: Tensor, labels: Tensor, size: tuple[int, int], pad: bool) -> Tensor:
        """Embed clicks.

        Args:
            points: (N, P, 2) float, (x, y) in pixels of the encoder's input.
            labels: (N, P) int; 1 foreground, 0 background, -1 not a point.
            size: (H, W) of the encoder's input in pixels.
            pad: add a 'not a point', as SAM does when there is no box.

        Returns:
            (N, P or P + 1, dim).
        """
        if pad:
            points = torch.cat([points, points.new_zeros(points.shape[0], 1, 2)], dim=1)
            labels = torch.cat([labels, labels.new_full((labels.shape[0], 1), -1)], dim=1)
        positions = self._encode(points, size)
        label = labels[..., None]
        background, foreground = self._kinds()[:2]
        embedded = positions + torch.where(label == 1, foreground, torch.where(label == 0, background, 0.0))
        return torch.where(label == -1, self.not_a_point_embed.weight, embedded)

    def embed_boxes(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Embed boxes (N, 4), XYXY in pixels of the encoder's input, as two corners (N, 2, dim)."""
        corners = self._encode(boxes.reshape(-1, 2, 2), size)
        return corners + self._kinds()[2:]

    def embed_masks(self, masks: Tensor) -> Tensor:
        """Embed low-resolution mask logits (N, 1, 4 h, 4 w) as dense embeddings (N, dim, h, w)."""
        return self.mask_downscaling(masks)

    def _kinds(self) -> Tensor:
        """Learned embeddings (4, dim): background click, foreground click, upper left, lower right corner."""
        return torch.cat([kind for table in self.point_embeddings for kind in table.parameters()])

    def _encode(self, points: Tensor, size: tuple[int, int]) -> Tensor:
        H, W = size
        scale = points.new_tensor([W, H])
        return self.pe_layer((points + 0.5) / scale)  # pixel centres
