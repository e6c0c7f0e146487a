"""What is said where areas are thinner than the masks' cells can show."""

import numpy as np
import pytest
from PIL import Image

from convlora.config import make_config
from convlora.data.check import check_dataset
from convlora.training.dry_run import dry_run
from convlora.training.fit import fit
from convlora.training.notes import thin_areas


def write_lines(root, width, images=2, classes=()):
    """Upright lines of so many pixels on 64 x 64, and a block as a second class if there are names for it."""
    for number, split in enumerate(("train", "val")):
        for i in range(images):
            mask = np.zeros((64, 64), np.uint8)
            for column in (10 + i, 40 + i):
                mask[:, column : column + width] = 1
            if classes:
                mask[40:, :] = 2
            for kind, array in (("images", 80 * mask + 2 * i + number), ("masks", mask)):
                folder = root / split / kind
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / f"{split}{i}.png")
    if classes:
        (root / "classes.txt").write_text("\n".join(classes))
    return root


def said_of(root, image_size=64, resize="stretch", patch=8):
    report = check_dataset(root)
    report.raise_if_errors()
    return thin_areas(report.dataset, image_size, resize, patch)


def test_thin_lines_are_told_with_the_size_that_shows_them(tmp_path):
    """Of upright lines the length counts pi / 4: 2 px are 1.3 cells of 2 px."""
    (note,) = said_of(write_lines(tmp_path, 2))
    assert note == (
        "thin areas, in cells of the predicted masks (32 x 32 for an image): 'foreground' 1.3. What is "
        "thinner than 1.5 is drawn coarsely. Finer: --image-size 128 (4.0 times as many pixels; "
        "train --dry-run tells the memory); or images cut into tiles, convert --tile, and predict --tile. A "
        "U-Net predicts every pixel of its input: compare --methods conv-lora,unet tells whether it is "
        "better here."
    )
    assert said_of(tmp_path, image_size=128) == []  # what it says helps


def test_where_a_larger_input_would_be_too_large_images_are_to_be_cut(tmp_path):
    (note,) = said_of(write_lines(tmp_path, 1))
    assert "'foreground' 0.6. " in note
    assert "drawn coarsely. Finer: images cut into tiles, convert --tile, and predict --tile. A U-Net" in note


def test_the_class_that_is_thin_is_named_and_the_background_is_not(tmp_path):
    root = write_lines(tmp_path, 2, classes=("background", "wire", "floor"))
    (note,) = said_of(root)
    assert "'wire' 1." in note
    assert "floor" not in note
    assert "background" not in note


def test_of_many_thin_classes_the_thinnest_are_named(tmp_path):
    root = write_lines(tmp_path, 1, classes=("background", *(f"class{i}" for i in range(1, 13))))
    for path in root.rglob("masks/*.png"):
        mask = np.zeros((64, 64), np.uint8)
        for value in range(1, 13):
            mask[:, 5 * value : 5 * value + 1 + (value > 9)] = value
        Image.fromarray(mask).save(path)
    (note,) = said_of(root)
    assert "'class1' 0.6, " in note
    assert ", 'class8' 0.6 and 4 more classes. What" in note


@pytest.mark.parametrize("resize", ["stretch", "pad"])
def test_thick_areas_are_not_told(binary_data, resize):
    assert said_of(binary_data, resize=resize) == []
    assert said_of(binary_data, image_size=16, resize=resize)  # of a fourth of the cells they are thin


def test_padding_takes_cells(tmp_path):
    """A picture of half the height keeps the cells of its longest side alone."""
    for path in write_lines(tmp_path, 3).rglob("*.png"):
        Image.open(path).transpose(Image.Transpose.TRANSPOSE).crop((0, 0, 64, 32)).save(path)
    assert said_of(tmp_path, image_size=48) == []  # 3 px in cells 1.3 px high
    assert said_of(tmp_path, image_size=48, resize="pad")  # 2.7 px high


def test_train_and_its_dry_run_say_it(tmp_path, small_backbone, capsys):
    data = write_lines(tmp_path / "data", 2)
    values = {"data": data, "out": tmp_path / "run", "backbone": str(small_backbone), "max_steps": 1}
    config = make_config({**values, "method": "decoder-only", "previews": 0})
    (note,) = said_of(data)
    assert note in dry_run(config).remarks
    capsys.readouterr()
    fit(config)
    assert f"note: {note}" in capsys.readouterr().out
