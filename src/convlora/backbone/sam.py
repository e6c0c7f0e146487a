"""The whole of SAM, assembled from its three parts."""

import torch
from torch import Tensor, nn

from convlora.backbone.image_encoder import ImageEncoder
from convlora.backbone.mask_decoder import MaskDecoder
from convlora.backbone.presets import SamSpec
from convlora.backbone.prompts import PromptEncoder
from convlora.errors import ConfigError


class Sam(nn.Module):
    """Image encoder, prompt encoder and mask decoder (Kirillov et al. 2023, section 3)."""

    def __init__(self, spec: SamSpec) -> None:
        super().__init__()
        self.spec = spec
        self.image_encoder = ImageEncoder(spec.encoder)
        self.prompt_encoder = PromptEncoder(spec.decoder)
        self.mask_decoder = MaskDecoder(spec.decoder)

    def forward(
        self,
        image: Tensor,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        multimask: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Masks for prompts.

        Args:
            image: (B, 3, H, W) normalised.
            points: (B, Q, P, 2) clicks of Q prompts on each image, (x, y) in pixels of `image`.
            labels: (B, Q, P) 1 foreground, 0 background, -1 not a point.
            boxes: (B, Q, 4) XYXY in pixels of `image`.
            multimask: the several masks for an ambiguous prompt, else the single one.

        Returns:
            Low-resolution mask logits (B, Q, M, 4 h, 4 w) and predicted IoU (B, Q, M); h and w are the cells
            of the embedding, M is 3 or 1 in SAM.

        Raises:
            ConfigError: points are given without labels, or labels without points.
        """
        size = (image.shape[-2], image.shape[-1])
        masks, iou = self.prompted(self.image_encoder(image), size, points, labels, boxes)
        chosen = slice(1, None) if multimask else slice(0, 1)
        return masks[:, :, chosen], iou[:, :, chosen]

    def prompted(
        self,
        embedding: Tensor,
        size: tuple[int, int],
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, for every mask token, from an embedding (B, dim, h, w) of images of `size` (H, W)."""
        sparse = self._sparse(size, points, labels, boxes)
        prompts = 1 if sparse is None else sparse.shape[0] // embedding.shape[0]
        dense = embedding + self.prompt_encoder.no_mask()
        positions = self.prompt_encoder.image_positions(embedding.shape[2], embedding.shape[3])
        masks, iou = self.mask_decoder(
            dense.repeat_interleave(prompts, dim=0), positions.to(embedding.dtype), sparse
        )
        shape = (embedding.shape[0], prompts)
        return masks.unflatten(0, shape), iou.unflatten(0, shape)

    def _sparse(
        self, size: tuple[int, int], points: Tensor | None, labels: Tensor | None, boxes: Tensor | None
    ) -> Tensor | None:
        parts = []
        if (points is None) != (labels is None):
            has, lacks = ("labels", "points") if points is None else ("points", "labels")
            raise ConfigError(
                f"{has} are given without {lacks}. A click has both: labels is (B, Q, P), 1 foreground, "
                "0 background, -1 not a point."
            )
        if points is not None and labels is not None:
            points, labels = points.flatten(0, 1), labels.flatten(0, 1)
            parts.append(self.prompt_encoder.embed_points(points, labels, size, pad=boxes is None))
        if boxes is not None:
            parts.append(self.prompt_encoder.embed_boxes(boxes.flatten(0, 1), size))
        return torch.cat(parts, dim=1) if parts else None
