"""Sample data: slices of the MNI152 brain MRI that ships inside nilearn, with grey and white matter."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from convlora.data.masks import save_mask
from convlora.errors import MissingExtraError
from convlora.output import check_new_folder, filled_at_once, write_errors

CLASSES = ("background", "grey_matter", "white_matter")

# Slabs along the body axis, in mm: 12 of training (every second slice), then 4 of validation or test in turn,
# with 3 mm between slabs, so that no held-out slice has a training slice for a neighbour.
_FIRST, _LAST, _PERIOD = 16, 148, 22
_TRAIN, _HELD = range(0, 12, 2), range(15, 19)

_README = """Axial slices of the MNI152 T1 template (ICBM 2009a nonlinear, 1 mm), as shipped inside nilearn.
Classes: background, grey matter, white matter, by the largest of the template's tissue probabilities.

Source: V.S. Fonov, A.C. Evans, R.C. McKinstry, C.R. Almli, D.L. Collins: Unbiased nonlinear average
age-appropriate brain templates from birth to adulthood. NeuroImage 47 (2009), S102.

Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute,
McGill University. Permission to use, copy, modify, and distribute this software and its documentation for
any purpose and without fee is hereby granted, provided that the above copyright notice appear in all
copies. The authors and McGill University make no representations about the suitability of this software
for any purpose. It is provided "as is" without express or implied warranty. The authors are not responsible
for any data loss, equipment damage, property loss, or injury to subjects or patients resulting from the use
or misuse of this software package.
"""


def write_brain_sample(root: Path) -> dict[str, int]:
    """Write the standard layout, classes.txt, and a README.txt with source and licence.

    Args:
        root: folder; must be new or empty.

    Returns:
        Number of slices of each split.

    Raises:
        DataError: the folder holds something, or is a file.
        WriteError: it cannot be written; nothing of it is left.
        MissingExtraError: nilearn is not installed.
    """
    check_new_folder(root)
    parts = _load()
    with write_errors(root), filled_at_once(root) as part:
        return _write(part, *parts)


def _write(root: Path, volume: np.ndarray, grey: np.ndarray, white: np.ndarray) -> dict[str, int]:
    counts = {"train": 0, "val": 0, "test": 0}
    for split, z in _slices():
        picture = np.rot90(volume[:, :, z])
        share = np.stack([1 - grey[:, :, z] - white[:, :, z], grey[:, :, z], white[:, :, z]])
        ids = np.rot90(share.argmax(axis=0)).astype(np.uint8)
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture * 255).round().astype(np.uint8)).save(
            root / split / "images" / f"z{z:03d}.png"
        )
        save_mask(root / split / "masks" / f"z{z:03d}.png", np.ascontiguousarray(ids))
        counts[split] += 1
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    (root / "README.txt").write_text(_README, encoding="utf-8")
    return counts


def _slices() -> list[tuple[str, int]]:
    chosen = []
    for number, start in enumerate(range(_FIRST, _LAST, _PERIOD)):
        chosen += [("train", start + offset) for offset in _TRAIN]
        chosen += [("test" if number % 2 else "val", start + offset) for offset in _HELD]
    return chosen


def _load() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """T1 picture and probabilities of grey and white matter, (x, y, z) in [0, 1]."""
    try:
        from nilearn import datasets
    except ImportError as error:
        raise MissingExtraError("The brain sample", "sample", "nilearn") from error
    loaders: list[Any] = [
        datasets.load_mni152_template,
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
    ]
    volume, grey, white = (np.asarray(load(resolution=1).dataobj) for load in loaders)
    return volume, grey, white
