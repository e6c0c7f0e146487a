"""Indexed masks: they are read by index, so palettes that differ, or say the inverse, are told of."""

import numpy as np
import pytest
from PIL import Image

from convlora.data.check import check_dataset
from convlora.data.labels import read_label
from convlora.data.masks import save_mask
from small import write_shapes

BLACK, WHITE, RED = (0, 0, 0), (255, 255, 255), (200, 0, 0)


@pytest.fixture
def data(tmp_path):
    return write_shapes(tmp_path / "my data", 2, {"train": 4, "val": 2, "test": 2})


def ids(path):
    with Image.open(path) as image:
        return np.array(image)


def save_indexed(path, values, *colours):
    image = Image.fromarray(values)
    image.putpalette([level for colour in colours for level in colour])
    image.save(path)


def masks(root, split="*"):
    return sorted(root.glob(f"{split}/masks/*.png"))


def inverse(root, every):
    """What a viewer shows stays the same; every so many masks have the indices the other way round."""
    for i, path in enumerate(masks(root)):
        values = ids(path)
        if i % every:
            save_indexed(path, values, BLACK, WHITE)
        else:
            save_indexed(path, 1 - values, WHITE, BLACK)
    return root


def told(report, code):
    return [problem for problem in report.problems if problem.code == code]


@pytest.mark.parametrize(("red", "told_of"), [(184, False), (183, True)])
def test_colours_that_were_rounded_are_the_same(data, red, told_of):
    for i, path in enumerate(masks(data)):
        save_indexed(path, ids(path), BLACK, RED if i else (red, 0, 0))
    assert bool(told(check_dataset(data), "mixed-palette")) == told_of


def test_indices_that_are_the_other_way_round_in_some_masks(data):
    plain = [ids(path) for path in masks(data, "train")]
    report = check_dataset(inverse(data, 3))
    found = told(report, "mixed-palette")
    assert [p.severity for p in found] == ["error"] * 3
    assert "index 0 is rgb(255, 255, 255), but rgb(0, 0, 0) in train_00.png (3 of 8 masks" in found[0].found
    assert "If the indices are the class ids, take the colours away instead" in found[1].fix
    # what is told mends it
    lines = [line for line in found[0].fix.splitlines() if line[:1].isdigit()]
    assert f"\nThen: convlora check '{data}'\n" in found[0].fix
    assert len(lines) == 2
    assert lines[0].startswith("0 0 0 class0")
    (data / "palette.txt").write_text("\n".join(lines), encoding="utf-8")
    mended = check_dataset(data)
    assert mended.problems == []
    for pair, before in zip(mended.dataset.splits["train"], plain, strict=True):
        np.testing.assert_array_equal(read_label(pair.mask, mended.dataset.encoding), before)


def test_of_other_splits_only(data):
    """One that is scored is not held up by the masks of another."""
    for path in masks(data):
        save_indexed(path, ids(path), BLACK, WHITE)
    path = masks(data, "train")[0]
    save_indexed(path, 1 - ids(path), WHITE, BLACK)
    scored = check_dataset(data, splits=("test",), scored="test")
    assert [(p.severity, p.file) for p in told(scored, "mixed-palette")] == [("warning", str(path))]
    assert scored.ok


def test_an_empty_mask_of_which_the_first_colour_is_black(data):
    """As programs number the colours that they find: 0 is white in all others, which have foreground."""
    for path in masks(data)[1:]:
        save_indexed(path, 1 - ids(path), WHITE, BLACK)
    first = masks(data)[0]
    save_indexed(first, np.zeros_like(ids(first)), BLACK)
    assert [p.file for p in told(check_dataset(data), "mixed-palette")] == [str(first)]


def test_white_background_and_black_foreground(data):
    for path in masks(data):
        save_indexed(path, 1 - ids(path), WHITE, BLACK)
    (problem,) = told(check_dataset(data), "inverse-palette")
    assert problem.severity == "warning"
    assert problem.found == "is indexed, with 0 shown white and foreground black, as 8 masks here"
    lines = problem.fix.splitlines()[1:]
    (data / "palette.txt").write_text("\n".join(lines), encoding="utf-8")
    assert check_dataset(data).problems == []


@pytest.mark.parametrize("kind", ["own", "ramp", "two greys", "red", "unused", "ignore", "ids"])
def test_palettes_that_agree_are_silent(data, kind):
    greys = [(i, i, i) for i in range(256)]
    for i, path in enumerate(masks(data)):
        values = ids(path)
        if kind == "own":
            save_mask(path, values)
        elif kind == "ramp":  # of different lengths
            save_indexed(path, values, *greys[: 256 if i % 2 else 2])
        elif kind == "two greys":
            save_indexed(path, values, BLACK, WHITE)
        elif kind == "unused":  # entries that no pixel has
            save_indexed(path, values, BLACK, RED, (i, 0, 9))
        elif kind == "ignore":
            values[:3] = 255
            save_indexed(path, values, BLACK, RED, *greys[2:255], (224, 224, 192))
        elif kind == "red":
            save_indexed(path, values, WHITE, RED)
        elif i % 3:  # beside ids in grey: numbers have no colour, also where they are listed as greys
            save_indexed(path, values, BLACK, *([RED] if i % 3 == 1 else greys[1:]))
    assert check_dataset(data).problems == []
