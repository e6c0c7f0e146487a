"""Polygons and run lengths as pixels, against the slow definitions and against pycocotools' own strings."""

import pickle

import numpy as np
import pytest

from convlora.data.raster import Shape, decode_runs, fill_polygon, in_order, paint, parse_runs

CORNERS = {
    "triangle": [(3.2, 1.1), (17.9, 8.4), (5.5, 15.3)],
    "concave": [(1, 1), (18, 2), (9.3, 7.7), (17, 15), (2, 13)],
    "self-crossing": [(2, 2), (17, 13), (17, 2), (2, 13)],
    "partly outside": [(-6, -4), (12, 5), (30, 40), (-3, 12)],
    "thin": [(1.2, 1.0), (1.9, 14.0), (2.4, 1.0)],
    "whole pixels": [(4, 3), (9, 3), (9, 8), (4, 8)],
    "double point": [(4, 3), (4, 3), (11.4, 3.9), (9, 12)],
    "level edges": [(2, 4.5), (15, 4.5), (15, 9.5), (2, 9.5)],
}
SIZE = (16, 20)


def inside_slow(points, size):
    """Every pixel by itself: a ray from its centre to the left crosses an odd number of edges."""
    result = np.zeros(size, bool)
    for row in range(size[0]):
        for column in range(size[1]):
            x, y = column + 0.5, row + 0.5
            crossings = 0
            for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
                if (y1 <= y < y2) or (y2 <= y < y1):
                    crossings += x1 + (y - y1) * (x2 - x1) / (y2 - y1) <= x
            result[row, column] = crossings % 2 == 1
    return result


@pytest.mark.parametrize("name", CORNERS)
def test_polygons_against_the_slow_definition(name):
    points = CORNERS[name]
    window, got = fill_polygon(np.array(points, float), SIZE)
    whole = np.zeros(SIZE, bool)
    whole[window] = got
    np.testing.assert_array_equal(whole, inside_slow(points, SIZE))
    assert whole.any()
    turned = fill_polygon(np.array(points[::-1], float), SIZE)[1]  # the direction of the points says nothing
    np.testing.assert_array_equal(turned, got)


def test_random_polygons_against_the_slow_definition():
    rng = np.random.default_rng(0)
    filled = 0
    for _ in range(40):
        points = [tuple(p) for p in rng.uniform(-4, 24, (rng.integers(3, 9), 2)).round(1)]
        whole = np.zeros(SIZE, bool)
        window, got = fill_polygon(np.array(points), SIZE)
        whole[window] = got
        np.testing.assert_array_equal(whole, inside_slow(points, SIZE))
        filled += whole.sum()
    assert filled > 500


def test_a_square_of_whole_pixels_is_those_pixels():
    window, got = fill_polygon(np.array([(4, 3), (9, 3), (9, 8), (4, 8)], float), SIZE)
    assert window == (slice(3, 8), slice(4, 9))
    assert got.all()


def test_neighbours_neither_overlap_nor_leave_a_gap():
    """An edge through centres of pixels belongs to one side."""
    left = np.array([(0, 0), (7.5, 0), (3.5, 16), (0, 16)], float)
    right = np.array([(7.5, 0), (20, 0), (20, 16), (3.5, 16)], float)
    total = np.zeros(SIZE, int)
    for points in (left, right):
        window, inside = fill_polygon(points, SIZE)
        total[window] += inside
    assert (total == 1).all()


@pytest.mark.parametrize(
    ("start", "end", "left", "right"),
    [
        ((14.4, 4.2), (8.8, 3.4), (6.6, 11.8), (12.0, 0.2)),  # through (9.5, 3.5)
        ((3.2, 12.0), (11.8, 15.0), (2.0, 15.6), (12.0, 2.2)),  # through (7.5, 13.5)
    ],
)
def test_an_edge_is_the_same_in_both_directions(start, end, left, right):
    """Decimals round: an edge through a pixel's centre must do so alike for both of its polygons."""
    parts = np.zeros(SIZE, int)
    for points in ([start, end, left], [end, start, right]):
        window, inside = fill_polygon(np.array(points), SIZE)
        parts[window] += inside
    whole = np.zeros(SIZE, int)
    window, inside = fill_polygon(np.array([start, left, end, right]), SIZE)
    whole[window] = inside
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("points", [[(30, 2), (40, 2), (35, 9)], [(1, -9), (5, -9), (3, -2)], [(4, 4)] * 3])
def test_nothing_inside(points):
    assert not fill_polygon(np.array(points, float), SIZE)[1].any()


# Strings that pycocotools 2.0 wrote, with the mask they stand for.
KNOWN = [
    (
        "2220O050MON030O0N",
        ["0010000", "0100000", "1101100", "1001001", "0100110"],
    ),
    ("0111", ["1011"]),
]


@pytest.mark.parametrize(("text", "rows"), KNOWN)
def test_compressed_runs_of_pycocotools(text, rows):
    expected = np.array([[int(c) for c in row] for row in rows], bool)
    np.testing.assert_array_equal(decode_runs(parse_runs(text), expected.shape), expected)


def test_compressed_runs_of_a_disc():
    """Longer runs: several groups for one number, and negative differences."""
    y, x = np.mgrid[:40, :33]
    runs = parse_runs("Z45P16K4M2N2N2O0O2O000O2O00000001N10001N101N2N2N3L5Ji5")
    np.testing.assert_array_equal(decode_runs(runs, (40, 33)), (y - 20) ** 2 + (x - 15) ** 2 < 150)


def test_runs_against_the_slow_definition():
    runs = np.array([3, 2, 4, 0, 1, 5])
    got = decode_runs(runs, (5, 3))
    flat = [value for i, n in enumerate(runs) for value in [i % 2] * n]
    for column in range(3):
        for row in range(5):
            assert got[row, column] == flat[column * 5 + row]


@pytest.mark.parametrize(
    ("text", "message"), [("2\x7f", "is not of that code"), ("2R", "ends within a number")]
)
def test_bad_strings(text, message):
    with pytest.raises(ValueError, match=message):
        parse_runs(text)


def box(value, side):
    return Shape(value, (np.array([(0, 0), (side, 0), (side, side), (0, side)], float),))


def test_small_on_top_and_ignore_below():
    large, small, crowd = box(1, 8), box(2, 4), box(255, 2)
    ids = paint(in_order([small, crowd, large], 255), (10, 10))
    assert (ids[:4, :4] == 2).all()  # also over the crowd, though that is smaller
    assert (ids == 1).sum() == 64 - 16
    assert (ids == 0).sum() == 100 - 64


def test_of_equal_sizes_the_later_is_on_top():
    first, second = box(1, 5), box(2, 5)
    assert paint(in_order([first, second], 255), (6, 6)).max() == 2
    assert paint(in_order([second, first], 255), (6, 6)).max() == 1


def test_shapes_go_to_other_processes():
    shape = pickle.loads(pickle.dumps(box(3, 4)))
    np.testing.assert_array_equal(paint([shape], (5, 5)), paint([box(3, 4)], (5, 5)))
    runs = Shape(1, runs=np.array([0, 7, 18]))
    assert runs.area == 7
    assert paint([runs], (5, 5)).sum() == 7
