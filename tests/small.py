"""A small SAM and small data sets for all tests."""

import json
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


def write_image(path: Path, size: tuple[int, int] = (20, 30), seed: int = 0) -> Path:
    """Write noise of (H, W), told from other images by its seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([seed, *path.name.encode()]).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def square(left: float, top: float, side: float) -> list[float]:
    """Polygon of a square: x1, y1, x2, y2, ..."""
    right, bottom = left + side, top + side
    return [left, top, right, top, right, bottom, left, bottom]


def coco(images: dict[str, list[dict]], names: tuple[str, ...] = ("cat", "dog")) -> dict:
    """COCO json of images of 20 x 30 pixels with their annotations; categories have the ids 1, 2, ..."""
    content: dict = {
        "categories": [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
        "images": [],
        "annotations": [],
    }
    for i, (name, annotations) in enumerate(images.items(), start=10):
        content["images"].append({"id": i, "file_name": name, "height": 20, "width": 30})
        for annotation in annotations:
            number = 100 + len(content["annotations"])
            content["annotations"].append({"id": number, "image_id": i, "iscrowd": 0, **annotation})
    return content


def write_roboflow(root: Path, splits: tuple[str, ...] = ("train", "val", "test"), count: int = 3) -> Path:
    """COCO data as Roboflow writes it: in each image a cat of 8 x 8 and a dog of 4 x 4 pixels."""
    for split in splits:
        images = {}
        for i in range(count):
            write_image(root / split / f"{split}{i}.png")
            images[f"{split}{i}.png"] = [
                {"category_id": 1, "segmentation": [square(2 + i, 2, 8)]},
                {"category_id": 2, "segmentation": [square(20, 10 + i, 4)]},
            ]
        (root / split / "_annotations.coco.json").write_text(json.dumps(coco(images)))
    return root


def write_yolo(root: Path, splits: tuple[str, ...] = ("train", "val", "test"), count: int = 3) -> Path:
    """YOLO polygons {train,val,test}/{images,labels}: the shapes of `write_roboflow`."""
    for split in splits:
        for i in range(count):
            write_image(root / split / "images" / f"{split}{i}.png")
            lines = []
            for kind, points in ((0, square(2 + i, 2, 8)), (1, square(20, 10 + i, 4))):
                shares = np.array(points).reshape(-1, 2) / (30, 20)
                lines.append(" ".join([str(kind), *(f"{value:.6f}" for value in shares.ravel())]))
            (root / split / "labels").mkdir(exist_ok=True)
            (root / split / "labels" / f"{split}{i}.txt").write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text("names: [cat, dog]\n")
    return root


def write_table(root: Path, split: bool = True, count: int = 3) -> Path:
    """A table of images and masks in different folders with different names: cats of `write_roboflow`."""
    rows = ["image,mask,split" if split else "image,mask"]
    for name in ("train", "val", "test"):
        for i in range(count):
            write_image(root / "pictures" / f"{name}{i}.png")
            mask = np.zeros((20, 30), np.uint8)
            mask[2:10, 2 + i : 10 + i] = 1
            (root / "truth").mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / "truth" / f"{name}{i}_mask.png")
            rows.append(f"pictures/{name}{i}.png,truth/{name}{i}_mask.png" + (f",{name}" if split else ""))
    (root / "data.csv").write_text("\n".join(rows) + "\n")
    return root
