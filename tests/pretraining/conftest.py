import numpy as np
import pytest

from convlora.pretraining.textures import TextureBank


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def plain_bank():
    """Procedural textures only."""
    return TextureBank()


@pytest.fixture(scope="session")
def photo_bank():
    pytest.importorskip("skimage")
    return TextureBank(photos=True)
