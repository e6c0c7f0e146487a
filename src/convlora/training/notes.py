"""What of a configuration has no effect on this data, goes against it, or follows unasked: said aloud."""

import math
from collections import defaultdict
from collections.abc import Iterable
from statistics import median

from convlora.config import RunConfig
from convlora.data.labels import read_label
from convlora.data.layout import BY_SEED, DataSet
from convlora.data.report import Problem, shown_file
from convlora.data.thickness import thickness
from convlora.data.transforms import fit_geometry
from convlora.model import foreground_ids

_NAMED = 8  # classes, the thinnest first
_LOOKED_AT = 32  # training masks, spread over all
_THIN = 1.5  # cells; larger inputs for cracks of 1.1 brought 4.2 to 5.5 points of Dice (docs/data.md)


def remarks(config: RunConfig) -> list[str]:
    """What follows from a method that leaves the encoder untouched; nothing for others."""
    if config.trains_encoder:
        return []
    if config.keeps_embeddings:
        return [
            "the encoder stays as it is: its embeddings are computed once and kept; keep_embeddings=false "
            "computes them anew at every step"
        ]
    if config.keep_embeddings is False:
        return []
    return [
        f"augment is {config.augment}: each epoch has new pixels, so the encoder runs for every image of "
        "every epoch. With augment=flip or augment=none its embeddings would be computed once, and an epoch "
        "after the first take a small part of the time."
    ]


def notes(config: RunConfig, classes: tuple[str, ...], named: tuple[str, ...] | None) -> list[str]:
    """Notes for the user.

    Args:
        config: the run.
        classes: those that count.
        named: what the data itself calls them, if it does.
    """
    found = []
    if named is not None and named != classes:
        found.append(
            f"classes: {', '.join(classes)} count, as given; the data folder names {', '.join(named)}. "
            "convlora evaluate will ask for data that names the former."
        )
    if len(classes) == 2 and config.num_masks is not None:
        found.append("num_masks and multiclass_head have no effect: the data has two classes.")
    return found


def made_splits(dataset: DataSet) -> list[str]:
    """A note where the splits were drawn just now, which hides what images have in common."""
    return [f"splits: {BY_SEED.format(seed=0)}"] if dataset.by_seed else []


def blank_masks(config: RunConfig, dataset: DataSet, problems: Iterable[Problem]) -> list[str]:
    """A note where a loss gives nothing for training masks without foreground, which are in the data.

    Args:
        config: the run.
        dataset: its training images.
        problems: of the check of the data.
    """
    if config.loss != "balanced-bce":
        return []
    empty = {problem.file for problem in problems if problem.code == "empty-masks"}
    count = sum(shown_file(pair.mask) in empty for pair in dataset.splits["train"])
    if not count:
        return []
    return [
        f"loss: balanced-bce is 0 where the images in memory at once have no foreground, so the {count} of "
        f"{len(dataset.splits['train'])} training masks without any teach nothing by themselves, whatever is "
        "predicted on them. loss=bce-dice learns from them too."
    ]


def thin_areas(
    dataset: DataSet, image_size: int, resize: str, patch: int, *, with_unet: bool = False
) -> list[str]:
    """A note where areas are hardly thicker than a cell of the decoder's masks, so drawn coarsely.

    Args:
        dataset: its training masks are looked at, 32 at most.
        image_size: side of the encoder's input in pixels.
        resize: 'pad' or 'stretch'.
        patch: side of the encoder's patches in pixels; the masks have four cells to it.
        with_unet: a U-Net is among what is trained, so none is advised.
    """
    pairs = dataset.splits["train"]
    measured = defaultdict(list)
    for pair in pairs[:: math.ceil(len(pairs) / _LOOKED_AT)]:
        mask = read_label(pair.mask, dataset.encoding)
        height, width = fit_geometry((mask.shape[0], mask.shape[1]), image_size, resize).resized
        cell = (patch / 4 * mask.shape[0] / height, patch / 4 * mask.shape[1] / width)
        for value, found in thickness(mask, cell).items():
            measured[value].append(found)
    cells = {
        dataset.classes[v]: median(measured[v]) for v in foreground_ids(dataset.classes) if v in measured
    }
    thin = {name: found for name, found in sorted(cells.items(), key=lambda item: item[1]) if found < _THIN}
    if not thin:
        return []
    side, step = 4 * image_size // patch, 8 * patch
    larger = step * math.ceil(image_size * _THIN / min(thin.values()) / step)
    named = ", ".join(f"'{name}' {found:.1f}" for name, found in list(thin.items())[:_NAMED])
    named += f" and {len(thin) - _NAMED} more classes" if len(thin) > _NAMED else ""
    factor = (larger / image_size) ** 2
    costs = f"{factor:.1f} times as many pixels; train --dry-run tells the memory"
    more = f"--image-size {larger} ({costs}); or " if factor <= 4 else ""
    note = (
        f"thin areas, in cells of the predicted masks ({side} x {side} for an image): {named}. What is "
        f"thinner than {_THIN} is drawn coarsely. Finer: {more}images cut into tiles, convert --tile, "
        "and predict --tile."
    )
    if not with_unet:
        note += (
            " A U-Net predicts every pixel of its input: compare --methods conv-lora,unet tells whether it "
            "is better here."
        )
    return [note]
