"""Geometry and its inverse, augmentation of image and mask together, the training set."""

import pytest
import torch
from torch.nn import functional as F

from convlora.data.augment import AugmentConfig, Augmenter
from convlora.data.check import check_dataset
from convlora.data.dataset import SegmentationDataset
from convlora.data.transforms import apply_image, apply_mask, fit_geometry, invert, normalize
from convlora.errors import ConfigError

SIZES = [(48, 64), (64, 48), (33, 97), (200, 128), (1, 50), (64, 64)]


def ramps(height: int, width: int) -> torch.Tensor:
    """Coordinates of pixel centres, as share of the image: (2, H, W)."""
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    x = ((torch.arange(width) + 0.5) / width)[None].expand(height, width)
    return torch.stack([y, x])


def ramp_in_square(geometry, cells: int) -> torch.Tensor:
    """The same coordinates on a grid of `cells` a side over the padded square; beyond 1 in the padding."""
    centre = (torch.arange(cells) + 0.5) / cells * geometry.side
    y = (centre / geometry.resized[0])[:, None].expand(cells, cells)
    x = (centre / geometry.resized[1])[None].expand(cells, cells)
    return torch.stack([y, x])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("resize", ["pad", "stretch"])
@pytest.mark.parametrize("cells", [32, 128])
def test_a_ramp_comes_back_as_itself(size, resize, cells):
    geometry = fit_geometry(size, 64, resize)
    got = invert(ramp_in_square(geometry, cells), geometry)
    want = ramps(*size)
    # bilinear sampling is exact on a ramp but within half a cell of the square's border, where it is flat
    margin = 0.5 / cells * 64 / min(geometry.resized)
    inside = ((want > margin) & (want < 1 - margin)).all(dim=0)
    assert (got - want)[:, inside].abs().max() < 1e-5 if inside.any() else True
    assert (got - want).abs().max() <= margin + 1e-5


def test_inverse_is_upsample_crop_resize_where_scales_are_whole():
    geometry = fit_geometry((32, 64), 64, "pad")
    scores = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    up = F.interpolate(scores[None], (64, 64), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(invert(scores, geometry), up[:, :32], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_padding(size):
    geometry = fit_geometry(size, 64, "pad")
    image, mask = torch.ones(3, *size), torch.ones(size, dtype=torch.uint8)
    square, ids = apply_image(image, geometry), apply_mask(mask, geometry)
    assert square.shape == (3, 64, 64)
    height, width = geometry.resized
    assert max(height, width) == 64
    assert (square[:, :height, :width] - 1).abs().max() < 1e-5
    square = normalize(square)
    assert (square[:, height:].abs().sum(), square[:, :, width:].abs().sum()) == (0, 0)
    assert (ids[:height, :width] == 1).all()
    assert (ids == 255).sum() == 64 * 64 - height * width
    assert fit_geometry(size, 64, "stretch").resized == (64, 64)


def test_mask_ids_are_kept():
    mask = torch.tensor([[0, 3], [200, 255]], dtype=torch.uint8)
    big = apply_mask(mask, fit_geometry((2, 2), 8, "pad"))
    assert (big == mask.repeat_interleave(4, 0).repeat_interleave(4, 1)).all()


def test_normalize_is_imagenets():
    image = torch.tensor([0.485, 0.456, 0.406])[:, None, None].expand(3, 2, 2)
    assert normalize(image).abs().max() < 1e-6
    assert normalize(image + 0.229)[0, 0, 0].item() == pytest.approx(1, abs=1e-5)


def test_unknown_resize():
    with pytest.raises(ConfigError, match="resize is 'crop'; it must be 'pad' or 'stretch'"):
        fit_geometry((3, 3), 8, "crop")


# --- augmentation ---


def example(seed=0):
    """A mask of blocks, and an image that shows it."""
    blocks = torch.randint(0, 3, (8, 8), generator=torch.Generator().manual_seed(seed))
    mask = blocks.repeat_interleave(8, 0).repeat_interleave(8, 1).to(torch.uint8)
    return (mask.float() / 2 * 0.8 + 0.1).expand(3, -1, -1).clone(), mask


@pytest.mark.parametrize("name", ["flip", "strong"])
def test_image_and_mask_move_together(name):
    config = AugmentConfig.preset(name)
    augment = Augmenter(AugmentConfig(**{**vars(config), "colour": 0}))
    image, mask = example()
    changed = 0
    for seed in range(12):
        moved, ids = augment(image, mask, seed)
        assert set(ids.unique().tolist()) <= {0, 1, 2, 255}
        shown = ((moved[0] - 0.1) / 0.8 * 2).round()
        inside = ids != 255
        # blocks of 8 px: only pixels at their borders may differ, by interpolation
        assert (shown[inside] == ids[inside]).float().mean() > 0.75
        assert (moved[0][~inside] < 0.1 + 0.8).all()
        changed += not torch.equal(ids, mask)
    assert 3 <= changed <= 12


def test_scaled_masks_are_ignored_outside():
    augment = Augmenter(AugmentConfig(horizontal_flip=0, scale=0.5, shift=0.2))
    image, mask = example()
    outside = [(augment(image, mask, seed)[1] == 255).float().mean().item() for seed in range(10)]
    assert max(outside) > 0.05
    ignored = torch.full_like(mask, 255)
    assert (augment(image, ignored, 3)[1] == 255).all()  # 'ignore' stays 'ignore'


def test_colour_changes_the_image_only():
    augment = Augmenter(AugmentConfig(horizontal_flip=0, colour=0.3))
    image, mask = example()
    moved, ids = augment(image, mask, 1)
    assert torch.equal(ids, mask)
    assert not torch.equal(moved, image)
    assert moved.min() >= 0
    assert moved.max() <= 1


def test_what_is_dark_can_still_be_seen():
    """Microscopy uses the lowest tenth of the range: a shift of brightness would make it black."""
    augment = Augmenter(AugmentConfig(horizontal_flip=0, colour=0.2))
    image, mask = example()
    dark = 0.02 + 0.08 * image
    contrast = [
        (moved[:, mask == 2].mean() - moved[:, mask == 0].mean()).item()
        for moved in (augment(dark, mask, seed)[0] for seed in range(20))
    ]
    before = (dark[:, mask == 2].mean() - dark[:, mask == 0].mean()).item()
    assert min(contrast) > 0.6 * before  # brightness and contrast take at most a fifth each
    assert max(contrast) > 1.05 * before


def test_seed_decides_and_leaves_the_random_state():
    augment = Augmenter(AugmentConfig.preset("strong"))
    image, mask = example()
    state = torch.random.get_rng_state()
    first, again, other = (augment(image, mask, seed) for seed in (5, 5, 6))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_none_changes_nothing():
    image, mask = example()
    moved, ids = Augmenter(AugmentConfig.preset("none"))(image, mask, 0)
    assert torch.equal(moved, image)
    assert torch.equal(ids, mask)
    with pytest.raises(ConfigError, match="augment is 'wild'; it must be one of none, flip, strong"):
        AugmentConfig.preset("wild")


# --- the training set ---


def training_set(data, augment="strong", seed=0):
    found = check_dataset(data).dataset
    return SegmentationDataset(
        found.splits["train"], found.encoding, 64, "pad", AugmentConfig.preset(augment), seed
    )


def test_examples(three_class_data):
    images = training_set(three_class_data, "none")
    item = images[1]
    assert item["image"].shape == (3, 64, 64)
    assert item["image"].dtype == torch.float32
    assert item["mask"].dtype == torch.int64
    assert set(item["mask"].unique().tolist()) <= {0, 1, 2, 255}
    assert (item["mask"] == 255).any()  # images are not square
    disc = item["image"][0][item["mask"] == 1].mean()
    assert disc > item["image"][0][item["mask"] == 0].mean() + 1  # discs are red


def test_epoch_and_index_decide(three_class_data):
    images, twin = training_set(three_class_data), training_set(three_class_data)
    assert torch.equal(images.get(2, 1)["image"], twin.get(2, 1)["image"])
    assert torch.equal(images.get(2, 1)["image"], images.get(2, 1)["image"])  # from the kept copy
    assert not torch.equal(images.get(2, 1)["image"], images.get(2, 2)["image"])
    other = training_set(three_class_data, seed=1)
    assert not torch.equal(images.get(2, 1)["image"], other.get(2, 1)["image"])


def test_kept_copies_are_limited(three_class_data):
    images = training_set(three_class_data, "none")
    images.room = 2
    for index in range(len(images)):
        images.get(index, 0)
    assert len(images.kept) == 2
    assert images[5]["image"].isfinite().all()
