"""Pictures: the right pixels are tinted, nothing else is touched."""

import numpy as np
import pytest

from convlora.inference import drawing
from convlora.inference.drawing import PALETTE, comparison, overlay, side_by_side, stack_rows


def test_only_drawn_classes_are_tinted():
    image = np.full((6, 8, 3), 0.5, np.float32)
    ids = np.zeros((6, 8), np.uint8)
    ids[:, 4:] = 2
    ids[5] = 255
    picture = overlay(image, ids, drawn=(2,))
    assert (picture[:4, :3] == 128).all()
    assert (picture[5] == 128).all()  # ignored pixels stay as they are
    tinted = (0.5 * 127.5 + 0.5 * PALETTE[2]).round()
    assert np.abs(picture[1, 6].astype(float) - tinted).max() <= 1


def test_borders_have_the_full_colour():
    ids = np.zeros((5, 5), np.uint8)
    ids[1:4, 1:4] = 1
    picture = overlay(np.zeros((5, 5, 3), np.float32), ids, drawn=(1,), strength=0.0)
    assert (picture[3, 3] == PALETTE[1]).all()
    assert (picture[2, 2] == 0).all()


@pytest.mark.parametrize(("height", "factor"), [(10, 3), (30, 1), (100, 1)])
def test_small_pictures_are_enlarged(height, factor):
    pictures = [np.zeros((height, 4, 3), np.uint8), np.full((height, 6, 3), 9, np.uint8)]
    sheet = side_by_side(pictures, gap=2, min_height=30)
    assert sheet.size == (10 * factor + 2, height * factor)


def test_comparison_and_rows():
    image, ids = np.zeros((20, 10, 3), np.float32), np.zeros((20, 10), np.uint8)
    row = comparison(image, ids, ids, drawn=(1,))
    assert row.height >= 256
    sheet = stack_rows([row, row])
    assert sheet.size == (row.width, 2 * row.height + 4)


@pytest.mark.parametrize("strength", [0.0, 0.5, 0.3])
def test_bytes_are_drawn_as_floats_are(monkeypatch, strength):
    """Pixels of 8 bits go through a table, some rows at a time: the same picture as by the formula."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 30, 3), np.uint8)
    ids = rng.integers(0, 3, (8, 6), np.uint8).repeat(5, axis=0).repeat(5, axis=1)
    ids[7:9, 3:20] = 255
    want = overlay(image / np.float32(255), ids, drawn=(1, 2), strength=strength)
    assert (overlay(image, ids, drawn=(1, 2), strength=strength) == want).all()
    monkeypatch.setattr(drawing, "_AT_ONCE", 3 * 30)
    assert (overlay(image, ids, drawn=(1, 2), strength=strength) == want).all()
    assert (want != image).any(axis=2).mean() > 0.1
