"""balanced-bce gives nothing for masks without foreground: it is said where the data has some."""

import numpy as np
import pytest
from PIL import Image

from convlora.config import make_config
from convlora.data.check import check_dataset
from convlora.training.dry_run import dry_run
from convlora.training.fit import fit
from convlora.training.notes import blank_masks
from small import write_shapes


@pytest.fixture
def data(tmp_path):
    """Two of four training masks, and one of val, hold nothing."""
    root = write_shapes(tmp_path / "data", 2, {"train": 4, "val": 2})
    for name in ("train/masks/train_00", "train/masks/train_01", "val/masks/val_00"):
        path = root / f"{name}.png"
        Image.fromarray(np.zeros_like(np.array(Image.open(path)))).save(path)
    return root


def said(root, loss):
    report = check_dataset(root)
    config = make_config({"data": root, "out": root.with_name("run"), "loss": loss})
    return blank_masks(config, report.dataset, report.warnings)


def test_masks_without_foreground(data):
    (note,) = said(data, "balanced-bce")
    assert note.startswith(
        "loss: balanced-bce is 0 where the images in memory at once have no foreground, so the 2 of 4"
    )
    assert note.endswith("loss=bce-dice learns from them too.")
    assert said(data, "bce-dice") == []


def test_where_all_have_some(tmp_path):
    assert said(write_shapes(tmp_path / "data", 2, {"train": 4, "val": 2}), "balanced-bce") == []


def test_train_and_its_dry_run_say_it(data, small_backbone, tmp_path, capsys):
    options = {"backbone": str(small_backbone), "loss": "balanced-bce", "max_steps": 1, "precision": "fp32"}
    config = make_config({"data": data, "out": tmp_path / "run", "previews": 0, **options})
    (note,) = said(data, "balanced-bce")
    assert note in dry_run(config).warnings
    fit(config)
    told = capsys.readouterr()
    assert note in told.out + told.err
