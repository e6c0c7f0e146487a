"""The prompt encoder beside what parity with transformers shows: precision."""

import torch

from convlora.backbone.prompts import PromptEncoder
from small import SMALL


def test_positions_are_those_of_float32_under_autocast():
    """Phases of many turns, rounded to bfloat16, would be anything."""
    torch.manual_seed(0)
    prompts = PromptEncoder(SMALL.decoder)
    prompts.pe_layer.positional_encoding_gaussian_matrix *= 10
    points, boxes = 64 * torch.rand(2, 3, 2), 64 * torch.rand(2, 4)
    labels = torch.tensor([[1, 0, -1]] * 2)

    def encoded():
        return (
            prompts.image_positions(5, 7),
            prompts.embed_points(points, labels, (64, 64), pad=True),
            prompts.embed_boxes(boxes, (64, 64)),
        )

    expected = encoded()
    with torch.autocast("cpu", torch.bfloat16):
        got = encoded()
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
