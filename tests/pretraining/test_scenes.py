import numpy as np
import pytest

from convlora.errors import ConfigError
from convlora.pretraining.degrade import degrade, to_bytes
from convlora.pretraining.scenes import FAMILIES, compact, generate_scene

SIZE = 128


def explained(image, ids):
    """Share of the colour variance between the mean colours of the ids."""
    values, ids = image.reshape(-1, 3).astype(float), ids.ravel()
    between = 0.0
    for value in np.unique(ids):
        member = values[ids == value]
        between += len(member) * ((member.mean(0) - values.mean(0)) ** 2).sum()
    return between / ((values - values.mean(0)) ** 2).sum()


@pytest.mark.parametrize("bank_name", ["plain_bank", "photo_bank"])
@pytest.mark.parametrize("family", FAMILIES)
def test_scene_has_valid_contiguous_ids(family, bank_name, request):
    bank = request.getfixturevalue(bank_name)
    masks = 0
    for seed in range(6):
        scene = generate_scene(np.random.default_rng(seed), SIZE, bank, family=family)
        assert scene.image.shape == (SIZE, SIZE, 3)
        for array in (scene.image, scene.instances, scene.coarse):
            assert array.dtype == np.uint8
            assert array.shape[:2] == (SIZE, SIZE)
        for ids in (scene.instances, scene.coarse):
            present = np.unique(ids[ids > 0])
            np.testing.assert_array_equal(present, np.arange(1, len(present) + 1))
            assert len(present) <= 250
        assert scene.image.std() > 2
        masks += int(scene.instances.max())
    assert masks >= 6


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_follow_what_is_painted(family, plain_bank):
    """The ids explain the colours much better in place than on the same image shifted by half its side."""
    right, shifted = [], []
    for seed in range(8):
        scene = generate_scene(np.random.default_rng(seed), SIZE, plain_bank, family=family, clean=True)
        right.append(explained(scene.image, scene.instances))
        shifted.append(explained(np.roll(scene.image, (SIZE // 2, SIZE // 2), (0, 1)), scene.instances))
    assert np.mean(right) > 2 * np.mean(shifted)
    assert np.mean(right) > 0.25


@pytest.mark.parametrize("family", ["shapes", "leaves", "buildings", "photo"])
def test_parts_lie_within_one_whole(family, plain_bank):
    """Each instance belongs to one coarse object, and some object has several."""
    parts = 0
    for seed in range(10):
        drawing = FAMILIES[family][0](np.random.default_rng(seed), SIZE, plain_bank)
        ids, coarse = drawing.instances, drawing.coarse
        wholes = [np.unique(coarse[ids == value]) for value in np.unique(ids[ids > 0])]
        assert all((whole > 0).all() for whole in wholes)
        parts += sum(map(len, wholes)) > len(np.unique(coarse[coarse > 0]))
    assert parts > 0


def test_same_state_same_scene(plain_bank):
    first, again, other = (
        generate_scene(np.random.default_rng(seed), SIZE, plain_bank) for seed in (3, 3, 4)
    )
    for field in ("image", "instances", "coarse"):
        np.testing.assert_array_equal(getattr(first, field), getattr(again, field))
    assert (first.image != other.image).any()


def test_all_families_are_drawn(monkeypatch, plain_bank, rng):
    drawn = []

    def spy(name, draw):
        return lambda *args: drawn.append(name) or draw(*args)

    table = {name: (spy(name, draw), weight) for name, (draw, weight) in FAMILIES.items()}
    monkeypatch.setattr("convlora.pretraining.scenes.FAMILIES", table)
    for _ in range(150):
        generate_scene(rng, 64, plain_bank)
    assert set(drawn) == set(FAMILIES)
    assert sum(weight for _, weight in FAMILIES.values()) == pytest.approx(1)


@pytest.mark.parametrize("size", [64, 200, 320])
def test_other_sizes(size, plain_bank, rng):
    assert generate_scene(rng, size, plain_bank).image.shape == (size, size, 3)


def test_compact_renumbers_and_drops_specks():
    ids = np.zeros((10, 10), np.uint8)
    ids[:2], ids[4, :6], ids[8, :5], ids[6:8] = 9, 40, 77, 200
    expected = np.zeros_like(ids)
    expected[:2], expected[4, :6], expected[6:8] = 1, 2, 3
    np.testing.assert_array_equal(compact(ids), expected)


@pytest.mark.parametrize(("key", "value"), [("size", 32), ("size", 2048), ("family", "clouds")])
def test_invalid_arguments(key, value, plain_bank, rng):
    with pytest.raises(ConfigError, match=key):
        generate_scene(rng, textures=plain_bank, **{key: value})


def test_to_bytes_rounds_and_clips():
    values = np.array([-1.0, 0.0, 0.5, 1.0, 2.0], np.float32)
    np.testing.assert_array_equal(to_bytes(values), [0, 0, 128, 255, 255])


def test_degrade_keeps_the_layout(plain_bank):
    """Tone, noise and blur move no pixel: the two halves stay in place, though perhaps inverted."""
    image = np.full((64, 64, 3), 0.3, np.float32)
    image[:, 32:] = 0.7
    results = [degrade(np.random.default_rng(seed), image, plain_bank) for seed in range(40)]
    for result in results:
        assert result.shape == image.shape
        assert result.dtype == np.uint8
        step = np.abs(np.diff(result.astype(float).mean((0, 2))))
        assert abs(int(step.argmax()) - 31) <= 2
    assert len({result.tobytes() for result in results}) == 40


def test_a_black_dye_gives_a_finite_image(monkeypatch, plain_bank):
    """The dye of fluorescence is scaled by its brightest channel, which may be 0."""
    monkeypatch.setattr(
        "convlora.pretraining.families.cells.random_colour", lambda rng: np.zeros(3, np.float32)
    )
    for seed in range(20):
        drawing = FAMILIES["cells"][0](np.random.default_rng(seed), 64, plain_bank)
        assert np.isfinite(drawing.image).all()
