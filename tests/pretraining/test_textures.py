import numpy as np
import pytest
from PIL import Image

from convlora.errors import DataError, MissingExtraError
from convlora.pretraining import textures
from convlora.pretraining.textures import (
    PHOTO_LICENCES,
    TextureBank,
    contrasting_colour,
    luma,
    random_colour,
    rgb,
    value_noise,
)


def test_value_noise_range_and_shape(rng):
    noise = value_noise(rng, 40, 90, cells=4, octaves=3)
    assert noise.shape == (40, 90)
    assert noise.dtype == np.float32
    assert noise.min() >= 0
    assert noise.max() <= 1
    assert noise.std() > 0.05


def test_value_noise_is_smoother_with_fewer_cells():
    steps = [
        np.abs(np.diff(value_noise(np.random.default_rng(0), 128, 128, cells), axis=1)).mean()
        for cells in (2, 8, 32, 128)
    ]
    assert steps == sorted(steps)
    assert steps[-1] > 10 * steps[0]


def test_rgb_copies_the_channel(rng):
    field = rng.random((3, 5), dtype=np.float32)
    np.testing.assert_array_equal(rgb(field), np.stack([field] * 3, -1))


def test_contrasting_colour_keeps_its_distance(rng):
    gaps = []
    for _ in range(200):
        reference = random_colour(rng)
        gaps.append(abs(float(luma(contrasting_colour(rng, reference, 0.2)) - luma(reference))))
    # eight draws of which more than half qualify: one miss in 256 at most on average
    assert np.mean(np.array(gaps) >= 0.2) > 0.97


@pytest.mark.parametrize("pattern", textures._PATTERNS, ids=lambda f: f.__name__)
def test_patterns_stay_near_unit_range(pattern, rng):
    for _ in range(5):
        field = pattern(rng, 33, 57)
        assert field.shape == (33, 57)
        assert field.dtype == np.float32
        assert -0.5 <= field.min() <= field.max() <= 1.5


@pytest.mark.parametrize("bank_name", ["plain_bank", "photo_bank"])
def test_texture_has_the_asked_mean_colour(bank_name, request, rng):
    bank = request.getfixturevalue(bank_name)
    colour = np.array([0.2, 0.5, 0.7], np.float32)
    made = [bank.texture(rng, 48, 64, colour, contrast=0.1) for _ in range(20)]
    for texture in made:
        assert texture.shape == (48, 64, 3)
        assert texture.dtype == np.float32
        # a pattern's mean may sit anywhere between the two colours, each half the contrast away; clouds
        # stretch by 1.8, grain adds little
        np.testing.assert_allclose(texture.mean((0, 1)), colour, atol=0.1)
    assert max(texture.std() for texture in made) > 0


def test_grain_is_standard_normal(plain_bank, rng):
    grain = plain_bank.grain(rng, 200, 300)
    assert grain.shape == (200, 300, 3)
    assert abs(grain.mean()) < 0.02  # 5 standard errors of 180,000 values
    assert abs(grain.std() - 1) < 0.02


def test_grain_larger_than_the_pool_is_refused(plain_bank, rng):
    with pytest.raises(DataError, match="at most 1024"):
        plain_bank.grain(rng, 8, 1025)


def test_photographs_are_used_and_all_listed_files_open(photo_bank, rng):
    assert len(photo_bank._photos) == len(PHOTO_LICENCES)
    crops = [photo_bank.photo(rng, 64, 48) for _ in range(20)]
    for crop in crops:
        assert crop.shape == (64, 48, 3)
        assert crop.dtype == np.float32
        assert 0 <= crop.min() <= crop.max() <= 1
    assert len({crop.tobytes() for crop in crops}) == 20


def test_every_photograph_states_a_free_licence():
    free = ("CC0:", "public domain:", "no known copyright restrictions:")
    assert all(licence.startswith(free) for licence in PHOTO_LICENCES.values())


def test_photographs_need_scikit_image(monkeypatch):
    monkeypatch.setattr(textures, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"convlora\[pretrain\]"):
        TextureBank(photos=True)
    assert TextureBank(photos=False)._photos == []


def test_missing_photograph_is_named(monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    for name in list(PHOTO_LICENCES)[1:]:
        Image.new("RGB", (4, 4)).save(tmp_path / "data" / name)
    fake = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(textures, "find_spec", lambda name: fake)
    with pytest.raises(DataError, match=next(iter(PHOTO_LICENCES))):
        TextureBank(photos=True)
