"""The prompt encoder beside what parity with transformers shows: precision."""

import pytest
import torch

from convlora.backbone.initialise import random_sam
from convlora.backbone.prompts import PromptEncoder
from convlora.errors import ConfigError
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


@pytest.mark.parametrize(("given", "missing"), [("points", "labels"), ("labels", "points")])
def test_half_a_click_is_refused(given, missing):
    """It would be dropped without a word, and the masks be those of no prompt."""
    prompt = {"points": torch.full((1, 1, 1, 2), 9.0), "labels": torch.ones(1, 1, 1, dtype=torch.long)}
    sam, image = random_sam(SMALL), torch.zeros(1, 3, 64, 64)
    boxes = torch.tensor([[[4.0, 4, 40, 40]]])
    for more in ({}, {"boxes": boxes}):
        with pytest.raises(ConfigError, match=f"^{given} are given without {missing}. A click has both"):
            sam(image, **{given: prompt[given]}, **more)
        assert sam(image, **prompt, **more)[0].shape == (1, 1, 3, 32, 32)
