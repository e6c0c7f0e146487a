"""A small SAM and small data sets for all tests."""

from pathlib import Path

import numpy as np
from PIL import Image

from convlora.backbone.presets import DecoderSpec, EncoderSpec, SamSpec

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
