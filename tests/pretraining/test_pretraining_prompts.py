import numpy as np
import pytest
from scipy import ndimage

from convlora.errors import DataError
from convlora.pretraining.prompts import sample_box, sample_click, sample_masks
from convlora.pretraining.scenes import FAMILIES, generate_scene

SIZE = 96


@pytest.fixture(scope="module")
def masks(plain_bank):
    """A few masks of every family, thin and large ones among them."""
    found = []
    for family in FAMILIES:
        scene = generate_scene(np.random.default_rng(1), SIZE, plain_bank, family=family)
        found += list(sample_masks(scene.instances, scene.coarse, np.random.default_rng(2), 6))
    assert len(found) > 30
    return found


def disc(radius, centre=(40, 50)):
    y, x = np.mgrid[:SIZE, :SIZE]
    return (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2


def at(mask, point):
    return bool(mask[int(point[1]), int(point[0])])


def two_maps():
    """Instances of 400, 100 and 10 pixels and a coarse map of one mask."""
    instances = np.zeros((SIZE, SIZE), np.uint8)
    instances[:20, :20], instances[40:50, 40:50], instances[80, :10] = 1, 2, 3
    return instances, (instances > 0).astype(np.uint8)


def test_masks_are_those_of_the_scene(rng):
    instances, coarse = two_maps()
    known = {(instances == 1).tobytes(), (instances == 2).tobytes(), (coarse == 1).tobytes()}
    for _ in range(50):
        chosen = sample_masks(instances, coarse, rng, 2)
        assert chosen.shape == (2, SIZE, SIZE)
        assert chosen.dtype == bool
        drawn = {mask.tobytes() for mask in chosen}
        assert len(drawn) == 2
        assert drawn <= known


def test_masks_are_drawn_by_the_root_of_their_area(rng):
    instances, coarse = two_maps()
    drawn = [int(sample_masks(instances, coarse, rng, 1).sum()) for _ in range(4000)]
    share = {area: drawn.count(area) / len(drawn) for area in set(drawn)}
    # a quarter coarse (510 pixels); the rest 20 : 10; four standard errors of a share are below 0.032
    assert share == pytest.approx({510: 0.25, 400: 0.5, 100: 0.25}, abs=0.032)


def test_small_or_missing_masks(rng):
    instances, coarse = two_maps()
    assert len(sample_masks(instances, coarse, rng, 10)) == 3
    assert len(sample_masks(instances, coarse, rng, 10, min_area=5)) == 4
    empty = np.zeros_like(instances)
    assert sample_masks(empty, empty, rng, 3).shape == (0, SIZE, SIZE)
    assert len(sample_masks(instances, empty, rng, 2)) == 2
    assert len(sample_masks(empty, coarse, rng, 2)) == 1


def test_clicks_fall_inside(masks, rng):
    for mask in masks:
        for _ in range(5):
            point = sample_click(mask, rng)
            assert point.shape == (2,)
            assert point.dtype == np.float32
            assert at(mask, point)


def test_clicks_mix_centre_and_uniform(rng):
    mask = disc(20)
    depth = ndimage.distance_transform_edt(mask)
    at_depth = [
        depth[int(y), int(x)] / depth.max() for x, y in (sample_click(mask, rng) for _ in range(2000))
    ]
    # half from the core (all at 0.8 or deeper), half uniform, 4 % of which are in a core of 0.2 radius
    assert np.mean(np.array(at_depth) >= 0.8) == pytest.approx(0.52, abs=0.05)
    assert np.min(at_depth) < 0.1


def test_boxes_hold_the_mask_exactly_without_jitter(masks, rng):
    for mask in masks:
        x0, y0, x1, y1 = sample_box(mask, rng, jitter=0.0)
        rows, columns = np.nonzero(mask)
        assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_boxes_move_by_up_to_a_tenth_of_the_side(rng):
    mask = np.zeros((SIZE, SIZE), bool)
    mask[20:60, 0:80] = True
    boxes = np.stack([sample_box(mask, rng) for _ in range(500)])
    shift = np.abs(boxes - [0, 20, 80, 60])
    limit = np.array([8, 4, 8, 4])
    assert (shift <= limit + 1e-4).all()  # float32 rounding
    assert (shift.max(0) > 0.9 * limit).all()
    assert boxes.min() >= 0
    assert boxes.max() <= SIZE


@pytest.mark.parametrize("sample", [sample_click, sample_box])
def test_empty_mask_is_refused(sample, rng):
    with pytest.raises(DataError, match="empty mask"):
        sample(np.zeros((8, 8), bool), rng)
