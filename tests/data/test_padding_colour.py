"""Padding is what SAM was trained with, 0 after normalisation, in training as in prediction."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SamImageProcessor

from convlora.data.augment import AugmentConfig, Augmenter
from convlora.data.dataset import SegmentationDataset
from convlora.data.images import read_image
from convlora.data.labels import MaskFile
from convlora.data.layout import Pair
from convlora.data.masks import MaskEncoding
from convlora.data.transforms import apply_image, fit_geometry, mean_colour, normalize

S = 64


@pytest.fixture
def pair(tmp_path):
    """A wide picture: the lower half of the square is padding."""
    image = np.random.default_rng(0).integers(100, 256, (32, S, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(np.ones((32, S), np.uint8)).save(tmp_path / "m.png")
    return Pair("a", tmp_path / "a.png", MaskFile(tmp_path / "m.png"))


def examples(pair, config):
    return SegmentationDataset([pair], MaskEncoding.IDS, S, "pad", config)


def test_input_is_that_of_the_reference(pair):
    """Same size, so that only normalisation and padding are compared, not two ways of resizing."""
    processor = SamImageProcessor(size={"longest_edge": S}, pad_size={"height": S, "width": S})
    want = processor(Image.open(pair.image), return_tensors="pt")["pixel_values"][0]
    image = torch.from_numpy(read_image(pair.image)).permute(2, 0, 1)
    got = normalize(apply_image(image, fit_geometry((32, S), S, "pad")))
    # float32 rounding of values up to 2.7, in another order of operations
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert want[:, :32].abs().min() > 0


def test_training_without_augmentation_pads_like_prediction(pair):
    item = examples(pair, AugmentConfig.preset("none"))[0]
    assert (item["image"][:, 32:] == 0).all()
    assert (item["mask"] == torch.where(torch.arange(S)[:, None] < 32, 1, 255)).all()


def test_no_colour_or_movement_reaches_the_padding(pair):
    images = examples(pair, AugmentConfig(colour=0.5, scale=0.3, shift=0.2, vertical_flip=0.5))
    shares = []
    for epoch in range(12):
        item = images.get(0, epoch)
        outside = item["mask"] == 255
        assert (item["image"][:, outside] == 0).all()
        assert (item["image"][:, ~outside] != 0).any()
        shares.append(outside.float().mean().item())
    assert len(set(shares)) > 3  # it does move


def test_ignored_pixels_of_the_picture_keep_their_colour():
    """A label of 255 is not padding."""
    image = torch.full((3, S, S), 0.9)
    mask = torch.full((S, S), 255, dtype=torch.uint8)
    moved, ids = Augmenter(AugmentConfig.preset("flip"))(image, mask, 0)
    assert (ids == 255).all()
    torch.testing.assert_close(moved, image)
    assert (moved - mean_colour(image)).abs().min() > 0.3
