"""Thickness of areas: against a loop over pixels, and against shapes whose thickness is known."""

import math

import numpy as np
import pytest

from convlora.data.masks import IGNORE
from convlora.data.thickness import thickness


def slowly(mask, value, cell):
    """The definition, a pixel and its two neighbours at a time."""
    height, width = cell
    size = length = 0.0
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            size += (mask[row, column] == value) / (height * width)
            for step, side in (((1, 0), 1 / width), ((0, 1), 1 / height)):
                other = row + step[0], column + step[1]
                if other[0] < mask.shape[0] and other[1] < mask.shape[1]:
                    pair = {int(mask[row, column]), int(mask[other])}
                    length += side * (value in pair and len(pair) == 2 and IGNORE not in pair)
    return 2 * size / (math.pi / 4 * length) if length else math.inf


@pytest.mark.parametrize("cell", [(1.0, 1.0), (2.5, 3.75)])
def test_it_is_the_slow_formula(cell):
    rng = np.random.default_rng(0)
    mask = rng.choice(np.array([0, 1, 2, IGNORE], np.uint8), size=(23, 31), p=(0.5, 0.3, 0.1, 0.1))
    found = thickness(mask, cell)
    assert set(found) == {0, 1, 2}
    for value, measured in found.items():
        assert measured == pytest.approx(slowly(mask, value, cell), rel=1e-12)
    assert len({round(measured, 3) for measured in found.values()}) == 3


def test_shapes():
    rows, columns = np.mgrid[:400, :400]
    disc = ((rows - 200) ** 2 + (columns - 200) ** 2 < 80**2).astype(np.uint8)
    assert thickness(disc)[1] == pytest.approx(80, rel=0.02)
    assert thickness(disc, (4.0, 4.0))[1] == pytest.approx(20, rel=0.02)
    strip = (np.abs((rows - 2 * columns + 200) / math.sqrt(5)) < 5).astype(np.uint8)
    # of one direction alone the length is off by up to a quarter
    assert thickness(strip)[1] == pytest.approx(10, rel=0.25)
    assert thickness(np.ones((9, 9), np.uint8)) == {1: math.inf}
    assert thickness(np.full((9, 9), IGNORE, np.uint8)) == {}


def test_ignore_is_no_border():
    mask = np.zeros((20, 20), np.uint8)
    mask[:, 8:12] = 1
    plain = thickness(mask)[1]
    mask[:, 12:] = IGNORE
    assert thickness(mask)[1] == pytest.approx(2 * plain)
