"""Warnings of classes that mean something else than one thinks; what is told to write does away with them."""

import numpy as np
import pytest
from PIL import Image

from convlora.data.check import check_dataset
from convlora.data.labels import read_label
from small import write_shapes


def change_masks(root, change):
    for path in root.rglob("masks/*.png"):
        Image.fromarray(change(np.array(Image.open(path)))).save(path)


def warned(root, code, **options):
    return [p for p in check_dataset(root, **options).warnings if p.code == code]


def write_what_is_said(root, problem):
    lines = problem.fix.partition(":\n")[2]
    (root / "palette.txt").write_text(lines + "\n", encoding="utf-8")
    (root / "classes.txt").unlink(missing_ok=True)


@pytest.fixture
def three(tmp_path):
    return write_shapes(tmp_path / "data", 3, {"train": 6, "val": 3, "test": 3})


@pytest.fixture
def two(tmp_path):
    return write_shapes(tmp_path / "data", 2, {"train": 4, "val": 2})


def test_a_class_that_a_split_does_not_hold(three):
    assert not warned(three, "class-not-in-split")
    for path in (three / "val" / "masks").iterdir():
        ids = np.array(Image.open(path))
        Image.fromarray(np.where(ids == 2, 0, ids).astype(np.uint8)).save(path)
    name = check_dataset(three).statistics["classes"][2]
    (told,) = warned(three, "class-not-in-split")
    assert told.file == str(three / "val" / "masks")
    assert f"no mask of val (3) holds '{name}'" in told.found
    assert "choose the best step" in told.rule
    assert not warned(three, "class-not-in-split", splits=("test",), scored="test")
    assert len(warned(three, "class-not-in-split", splits=("val",), scored="val")) == 1


def test_a_split_without_foreground(two):
    change_masks(two / "val", lambda ids: 0 * ids)
    change_masks(two / "train", lambda ids: 255 * ids)
    (told,) = warned(two, "class-not-in-split")
    assert "'foreground'" in told.found


@pytest.mark.parametrize("top", [1, 255])
def test_inverted_masks(two, top):
    """Membranes in 0 on cells of 255: the palette that is told makes the membranes the foreground."""
    assert not warned(two, "mostly-foreground")
    thin = [np.array(Image.open(path)) for path in sorted((two / "train" / "masks").iterdir())]
    change_masks(two, lambda ids: (top * (1 - ids)).astype(np.uint8))
    (told,) = warned(two, "mostly-foreground")
    write_what_is_said(two, told)
    report = check_dataset(two)
    assert report.ok
    assert not warned(two, "mostly-foreground")
    assert report.statistics["classes"] == ["background", "foreground"]
    for pair, ids in zip(report.dataset.splits["train"], thin, strict=True):
        np.testing.assert_array_equal(read_label(pair.mask, report.dataset.encoding), ids)


def test_named_classes_the_other_way_round(two):
    (two / "classes.txt").write_text("membrane\ncell\n", encoding="utf-8")
    change_masks(two, lambda ids: (255 * (1 - ids)).astype(np.uint8))
    (told,) = warned(two, "mostly-foreground")
    assert "in place of classes.txt" in told.fix
    write_what_is_said(two, told)
    assert check_dataset(two).statistics["classes"] == ["cell", "membrane"]


def test_pixels_without_a_label_as_a_class(three):
    (three / "classes.txt").write_text("unlabelled\nwheat\nmaize\n", encoding="utf-8")
    before = check_dataset(three).dataset
    (told,) = warned(three, "unlabelled-class")
    assert "'unlabelled' (id 0)" in told.found
    write_what_is_said(three, told)
    after = check_dataset(three).dataset
    assert after.classes == ("wheat", "maize")
    for old, new in zip(before.splits["train"], after.splits["train"], strict=True):
        ids = read_label(old.mask, before.encoding).astype(int)
        expected = np.where(ids == 0, 255, ids - 1)
        np.testing.assert_array_equal(read_label(new.mask, after.encoding), expected)


def test_that_a_seed_made_the_splits_is_told(two):
    assert "splits" not in check_dataset(two).statistics
    (two / "train").rename(two.parent / "one")
    report = check_dataset(two.parent / "one", split_seed=4)
    assert report.statistics["splits"].startswith(
        "made here by seed 4, image by image: scores are too good if"
    )
