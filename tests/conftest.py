"""A small backbone and small data sets, made here; no network, one thread for each test process."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convlora.backbone.initialise import random_sam
from convlora.backbone.presets import DecoderSpec, EncoderSpec, SamSpec
from convlora.backbone.weights import save_sam

torch.set_num_threads(1)

SMALL = SamSpec(
    EncoderSpec(
        embed_dim=32,
        depth=2,
        num_heads=2,
        global_attn_indexes=(1,),
        image_size=64,
        patch_size=8,
        window_size=4,
        out_channels=32,
    ),
    DecoderSpec(dim=32, mlp_dim=64, num_heads=4, iou_head_hidden_dim=32),
)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def small_backbone(tmp_path_factory) -> Path:
    """Folder of a random SAM with two blocks, 64 px, patch 8."""
    folder = tmp_path_factory.mktemp("backbone")
    save_sam(random_sam(SMALL), folder)
    return folder


def write_shapes(root: Path, classes: int, sizes: dict[str, int], seed: int = 0) -> Path:
    """Write a data set of coloured discs and bars on noise; class 1 discs, class 2 bars."""
    rng = np.random.default_rng(seed)
    for split, count in sizes.items():
        for i in range(count):
            height, width = (48, 64) if i % 2 else (60, 40)
            image = rng.integers(60, 120, (height, width, 3))
            mask = np.zeros((height, width), np.uint8)
            y, x = np.mgrid[:height, :width]
            disc = (y - rng.integers(15, height - 15)) ** 2 + (x - rng.integers(12, width - 12)) ** 2 < 81
            image[disc], mask[disc] = (220, 60, 60), 1
            if classes > 2:
                top = rng.integers(2, height - 8)
                image[top : top + 5, 4:-4], mask[top : top + 5, 4:-4] = (60, 60, 230), 2
            for kind, array in (("images", image.astype(np.uint8)), ("masks", mask)):
                folder = root / split / kind
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / f"{split}_{i:02d}.png")
    if classes > 2:
        (root / "classes.txt").write_text("background\ndisc\nbar\n")
    return root


@pytest.fixture(scope="session")
def binary_data(tmp_path_factory) -> Path:
    """Discs on noise, 8 / 4 / 4 images of two sizes."""
    return write_shapes(tmp_path_factory.mktemp("binary"), 2, {"train": 8, "val": 4, "test": 4})


@pytest.fixture(scope="session")
def three_class_data(tmp_path_factory) -> Path:
    """Discs and bars on noise, 8 / 4 / 4 images of two sizes."""
    return write_shapes(tmp_path_factory.mktemp("three"), 3, {"train": 8, "val": 4, "test": 4})
