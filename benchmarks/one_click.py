"""How well does a promptable backbone segment what one click, or a box, asks for? Zero-shot; prints JSON.

    python benchmarks/one_click.py DATA [--backbone sam-tiny] [--split test] [--objects 1000]

DATA is a binary data set (split/images, split/masks). An object is a connected part of the foreground (8
neighbours) of at least 20 px; the click is its deepest point, the box its exact bounds. Two views of it:
`image`, the whole image with its longer side scaled to the backbone's native size, and `window`, the native
size of pixels around the click. IoU is measured in the pixels of the view; the mean is over objects. What it
must beat: a disc at the click, of 7 px and of the radius that is best on the train split (same view).
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch.nn import functional as F

from common import parser, report
from convlora.backbone.sam import Sam
from convlora.backbone.weights import load_sam
from convlora.data.transforms import MEAN, STD

LEAST_AREA = 20
_RADII = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 17, 20, 24, 28, 34, 40, 48, 60)


class View(NamedTuple):
    """What the backbone sees: an image (S, S, 3) uint8 and the objects in it (n, S, S) bool."""

    image: np.ndarray
    objects: np.ndarray


def views(image: np.ndarray, mask: np.ndarray, size: int, kind: str, most: int) -> list[View]:
    """Views of an image with at most `most` of its objects, evenly drawn."""
    labels, count = ndimage.label(mask == 1, np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    numbers = evenly([n for n in range(1, count + 1) if areas[n] >= LEAST_AREA], most)
    if kind == "window":
        return [_window(image, labels == n, size) for n in numbers]
    scale = size / max(mask.shape)
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    whole = [Image.fromarray(labels == n).resize((width, height), Image.Resampling.NEAREST) for n in numbers]
    objects = [_padded(np.asarray(one), size) for one in whole]
    objects = [one for one in objects if one.any()]
    return [View(_padded(np.asarray(small), size), np.stack(objects))] if objects else []


def evenly(numbers: list[int], most: int) -> list[int]:
    """At most `most` of them: the middle one of each of as many equal parts of the list."""
    share = min(1.0, most / max(1, len(numbers)))
    return [numbers[int((i + 0.5) / share)] for i in range(min(most, len(numbers)))]


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    rest = [(0, size - side) for side in array.shape[:2]]
    return np.pad(array, rest + [(0, 0)] * (array.ndim - 2))


def _window(image: np.ndarray, thing: np.ndarray, size: int) -> View:
    x, y = click(thing)
    top, left = (
        int(np.clip(at - size // 2, 0, max(0, side - size)))
        for at, side in zip((y, x), thing.shape, strict=True)
    )
    part = np.s_[top : top + size, left : left + size]
    return View(_padded(image[part], size), _padded(thing[part], size)[None])


def click(thing: np.ndarray) -> tuple[int, int]:
    """Deepest pixel (x, y) of a mask."""
    depth = ndimage.distance_transform_edt(np.pad(thing, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), thing.shape)
    return int(x), int(y)


def overlap(found: np.ndarray, thing: np.ndarray) -> float:
    """IoU of two masks."""
    return float((found & thing).sum() / max(1, (found | thing).sum()))


def discs(view: View) -> np.ndarray:
    """IoU of a disc of every radius at the click, (objects, radii)."""
    rows, columns = np.ogrid[: view.image.shape[0], : view.image.shape[1]]
    found = []
    for thing in view.objects:
        x, y = click(thing)
        distance = (rows - y) ** 2 + (columns - x) ** 2
        found.append([overlap(distance <= radius**2, thing) for radius in _RADII])
    return np.array(found)


@torch.inference_mode()
def masks(sam: Sam, view: View, prompt: str) -> np.ndarray:
    """SAM's mask for a click or a box on every object, (objects, S, S) bool.

    `prompt`: "click" and "box" for the single mask, "click, best of three" for the one that SAM itself would
    choose: of its masks for ambiguous prompts that of the highest predicted IoU.
    """
    size = view.image.shape[0]
    image = torch.tensor(view.image).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    points = labels = boxes = None
    several = prompt.endswith("three")
    if prompt.startswith("click"):
        points = torch.tensor([[[click(thing)] for thing in view.objects]], dtype=torch.float32)
        labels = torch.ones(points.shape[:-1], dtype=torch.long)
    else:
        boxes = torch.tensor([[_bounds(thing) for thing in view.objects]], dtype=torch.float32) - 0.5
    logits, iou = sam((image - mean) / std, points, labels, boxes, multimask=several)
    chosen = logits[0][torch.arange(len(view.objects)), iou[0].argmax(-1)][:, None].float()
    full = F.interpolate(chosen, size=(size, size), mode="bilinear", align_corners=False)
    return (full[:, 0] > 0).numpy()


def _bounds(thing: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(thing.any(1)), np.flatnonzero(thing.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def split_views(options: argparse.Namespace, split: str, size: int, kind: str) -> list[View]:
    """Views of a whole split, with about `--objects` objects, evenly over its images."""
    files = sorted((options.data / split / "masks").glob("*.png"))
    most = max(1, options.objects // len(files))
    found = []
    for file in files:
        image = next((options.data / split / "images").glob(f"{file.stem}.*"))
        pixels, mask = np.asarray(Image.open(image).convert("RGB")), np.asarray(Image.open(file))
        found += views(pixels, mask, size, kind, most)
    return found


def measure(sam: Sam, options: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Mean IoU of the discs and of every prompt, of a view of a split."""
    size = sam.spec.encoder.image_size
    train, test = (split_views(options, split, size, kind) for split in ("train", options.split))
    return scored(sam, train, test)


def scored(sam: Sam, train: list[View], test: list[View]) -> dict[str, Any]:
    """Mean IoU over the objects of `test`; the disc's best radius is that of `train`."""
    of_discs = np.concatenate([discs(view) for view in test])
    best = int(np.concatenate([discs(view) for view in train]).mean(0).argmax())
    result: dict[str, Any] = {
        "objects": len(of_discs),
        "disc of 7 px": round(float(of_discs[:, _RADII.index(7)].mean()), 4),
        f"disc of {_RADII[best]} px (best on train)": round(float(of_discs[:, best].mean()), 4),
    }
    for prompt in ("click", "click, best of three", "box"):
        scores = [
            overlap(found, thing)
            for view in test
            for found, thing in zip(masks(sam, view, prompt), view.objects, strict=True)
        ]
        result[prompt] = round(float(np.mean(scores)), 4)
    return result


def main() -> None:
    made = parser(__doc__, backbone="sam-tiny", split="test", objects=1000)
    made.add_argument("data", type=Path)
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    sam = load_sam(options.backbone).sam.eval()
    result = {kind: measure(sam, options, kind) for kind in ("image", "window")}
    report("one click", {"options": {**vars(options), "data": options.data.name}, **result})


if __name__ == "__main__":
    main()
