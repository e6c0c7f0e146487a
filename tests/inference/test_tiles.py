"""Where tiles lie and what they count: tables, and the properties that the blending relies on."""

import itertools

import numpy as np
import pytest

from convlora.errors import ConfigError
from convlora.inference.tiles import Tiles, choose_tiles, plan_tiles

# length, side, overlap -> starts of the tiles
STARTS = {
    (100, 100, 20): [0],
    (60, 100, 20): [0],
    (101, 100, 20): [0, 1],
    (180, 100, 20): [0, 80],  # just two
    (181, 100, 20): [0, 40, 81],  # one more, and all are moved together
    (260, 100, 20): [0, 80, 160],
    (300, 100, 0): [0, 100, 200],
    (301, 100, 0): [0, 67, 134, 201],
    (1000, 128, 63): [0, 62, 124, 186, 249, 311, 373, 436, 498, 560, 622, 685, 747, 809, 872],
}


def spans(length, side, overlap):
    return [(t.top, t.bottom, t.row_weights) for t in plan_tiles((length, 1), Tiles(side, overlap))]


def laid_out(found, length):
    """Weights of all tiles, (tiles, length)."""
    weights = np.zeros((len(found), length))
    for row, (start, end, values) in zip(weights, found, strict=True):
        row[start:end] = values
    return weights


@pytest.mark.parametrize("case", STARTS)
def test_starts(case):
    length, side, overlap = case
    found = spans(*case)
    assert [start for start, _, _ in found] == STARTS[case]
    assert {end - start for start, end, _ in found} == {min(side, length)}
    assert found[-1][1] == length
    for (_, end, _), (start, _, _) in itertools.pairwise(found):
        assert end - start >= overlap


@pytest.mark.parametrize("case", [*STARTS, (129, 128, 63), (192, 128, 63), (255, 128, 63), (9999, 512, 100)])
def test_weights(case):
    length, _side, overlap = case
    weights = laid_out(spans(*case), length)
    np.testing.assert_allclose(weights.sum(axis=0), 1, rtol=0, atol=1e-12)
    assert weights.min() >= 0
    steps = np.abs(np.diff(weights, axis=1)).max(initial=0)
    assert steps <= (1 / overlap if overlap else 1) + 1e-12
    if len(weights) > 1:
        assert steps > 0  # they do change


def test_a_plain_border_is_a_straight_line():
    weights = laid_out(spans(156, 100, 44), 156)
    ramp = (np.arange(44) + 0.5) / 44
    np.testing.assert_allclose(weights[1], np.concatenate([np.zeros(56), ramp, np.ones(56)]), atol=1e-12)


def test_rows_and_columns():
    tiles = plan_tiles((50, 180), Tiles(100, 20))
    assert [(t.top, t.bottom, t.left, t.right) for t in tiles] == [(0, 50, 0, 100), (0, 50, 80, 180)]
    tiles = plan_tiles((180, 260), Tiles(100, 20))
    assert [(t.top, t.left) for t in tiles] == [(y, x) for y in (0, 80) for x in (0, 80, 160)]
    total = np.zeros((180, 260))
    for t in tiles:
        total[t.top : t.bottom, t.left : t.right] += np.outer(t.row_weights, t.column_weights)
    np.testing.assert_allclose(total, 1, atol=1e-12)


def test_options():
    assert choose_tiles(None) is None
    assert choose_tiles(1024) == Tiles(1024, 256)
    assert choose_tiles(np.int64(101), 50) == Tiles(101, 50)
    assert choose_tiles(32, 0) == Tiles(32, 0)
    assert Tiles(32, 0).cut((1, 33))
    assert not Tiles(32, 0).cut((32, 32))


REFUSED = {
    "small": ((31, None), r"tile is 31; it must be 32 pixels or more\. Take about as many"),
    "negative": ((-5, None), "tile is -5"),
    "half": ((100, 50), r"tile_overlap is 50; it must be from 0 to 49, less than half of tile, which is 100"),
    "odd half": ((101, 51), "tile_overlap is 51; it must be from 0 to 50"),
    "below zero": ((100, -1), "tile_overlap is -1; it must be from 0"),
    "text": (("64", None), "tile is '64'; it must be a whole number of pixels, 32 or more"),
    "float": ((64.0, None), r"tile is 64\.0; it must be a whole number"),
    "bool": ((True, None), "tile is True"),
    "overlap of text": ((64, "8"), "tile_overlap is '8'; it must be a whole number"),
    "overlap alone": ((None, 8), r"tile_overlap is 8, but there is no tile\. Give the side .*--tile"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    arguments, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        choose_tiles(*arguments)
