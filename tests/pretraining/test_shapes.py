import numpy as np
import pytest

from convlora.pretraining.shapes import (
    MAX_IDS,
    OUTLINES,
    Drawing,
    Stamp,
    draw_ids,
    draw_lines,
    fourier_outlines,
    random_outline,
    random_walk,
    rasterise,
    turned,
)

SQUARE = np.array([[10, 20], [30, 20], [30, 50], [10, 50]], float)


def inside(points, size):
    """Even-odd rule at every pixel."""
    y, x = np.mgrid[:size, :size].astype(float)
    odd = np.zeros((size, size), bool)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if ay != by:
            odd ^= ((ay > y) != (by > y)) & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return odd


def full(stamp, size):
    alpha = np.zeros((size, size), np.float32)
    alpha[stamp.window] = stamp.alpha
    return alpha


@pytest.mark.parametrize("outline", OUTLINES, ids=lambda f: f.__name__)
def test_rasterise_agrees_with_the_even_odd_rule(outline, rng):
    points = outline(rng) * 40 + 64
    alpha, truth = full(rasterise(points, 128), 128), inside(points, 128)
    assert truth.sum() > 100
    wrong = (alpha >= 0.5) != truth
    boundary = np.zeros_like(truth)
    for axis in (0, 1):
        for step in (-1, 1):
            boundary |= np.roll(truth, step, axis) != truth
    diagonal = np.roll(boundary, 1, 0) | np.roll(boundary, -1, 0) | np.roll(boundary, 1, 1) | boundary
    assert not (wrong & ~diagonal).any()  # only the pixels at the outline depend on the rule of rounding


def test_rasterise_clips_at_the_image_and_outside_is_none():
    stamp = rasterise(SQUARE - (20, 0), 64)
    assert stamp.window[1].start == 0
    assert stamp.alpha.shape == (stamp.window[0].stop - stamp.window[0].start, stamp.window[1].stop)
    assert stamp.mask.any()
    assert rasterise(SQUARE - (100, 0), 64) is None
    assert rasterise(SQUARE - (0, 100), 64) is None


def test_paint_blends_by_coverage_and_sets_ids():
    drawing = Drawing.on(np.full((8, 8, 3), 0.2, np.float32))
    alpha = np.array([[1.0, 0.5], [0.25, 0.0]], np.float32)
    stamp = Stamp(alpha, (slice(2, 4), slice(3, 5)))
    drawing.paint(stamp, np.array([1.0, 0.0, 0.6], np.float32), instance=7, coarse=3)
    expected = np.full((8, 8, 3), 0.2, np.float32)
    expected[2, 3], expected[2, 4], expected[3, 3] = [1, 0, 0.6], [0.6, 0.1, 0.4], [0.4, 0.15, 0.3]
    np.testing.assert_allclose(drawing.image, expected, atol=1e-6)  # float32 rounding
    ids = np.zeros((8, 8), np.uint8)
    ids[2, 3:5] = 7
    np.testing.assert_array_equal(drawing.instances, ids)
    np.testing.assert_array_equal(drawing.coarse, np.where(ids, 3, 0))
    drawing.paint(stamp, np.zeros(3, np.float32), instance=8)
    assert drawing.instances.max() == 8
    np.testing.assert_array_equal(drawing.coarse, np.where(ids, 3, 0))


def test_draw_ids_paints_later_outlines_on_top_and_caps_their_number():
    ids = draw_ids([SQUARE, SQUARE + 10], 64)
    assert ids[25, 15] == 1
    assert ids[35, 25] == 2
    assert ids[0, 0] == 0
    assert draw_ids([SQUARE] * 300, 64).max() == MAX_IDS


@pytest.mark.parametrize("width", [1.0, 2.0, 5.0, 9.0])
def test_lines_cover_their_width(width):
    points = np.stack([np.linspace(-10, 80, 10), np.full(10, 32.0)], 1)
    alpha = draw_lines([(points, np.full(9, width))], 64)
    assert alpha.shape == (64, 64)
    # a column sums to the width; the bitmap of twice the size rounds it by up to one of its pixels
    np.testing.assert_allclose(alpha[:, 5:-5].sum(0), width, atol=0.51)
    assert alpha[:20].max() == 0


def test_random_walk_keeps_its_step_and_direction(rng):
    start = np.array([3.0, 4.0])
    walk = random_walk(rng, start, 0.3, 12, 2.0, 0.2)
    np.testing.assert_allclose(walk[0], start)
    np.testing.assert_allclose(np.linalg.norm(np.diff(walk, axis=0), axis=1), 2.0)
    straight = random_walk(rng, start, 0.3, 12, 2.0, 0.0)
    np.testing.assert_allclose(straight[-1], start + 24 * np.array([np.cos(0.3), np.sin(0.3)]))


def test_fourier_outlines_are_circles_without_roughness(rng):
    np.testing.assert_allclose(np.linalg.norm(fourier_outlines(rng, 3, 0.0), axis=-1), 1.0)
    radius = np.linalg.norm(fourier_outlines(rng, 50, 0.3), axis=-1)
    assert radius.std() > 0.05
    assert radius.min() >= 0.3
    assert radius.max() <= 1.8


def test_turned_by_a_quarter():
    np.testing.assert_allclose(
        turned(np.array([[1.0, 0.0], [0.0, 2.0]]), np.pi / 2), [[0, 1], [-2, 0]], atol=1e-12
    )


def test_random_outline_sits_about_its_centre(rng):
    for _ in range(50):
        points = random_outline(rng, np.array([100.0, 50.0]), 10.0)
        assert np.abs(points - (100, 50)).max() < 25
