"""Masks and predictions with structure, not square."""

import pytest
import torch

HEIGHT, WIDTH = 37, 53


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(7)


@pytest.fixture
def class_maps():
    """Six images of five classes as (pred, target); class 3 never occurs, class 4 in one image only."""
    maps = []
    for image in range(6):
        target = torch.randint(0, 3, (HEIGHT, WIDTH))
        target[5:20, 10:30] = 4 if image == 2 else 1
        wrong = torch.rand(HEIGHT, WIDTH) < 0.1 * (image + 1)
        pred = torch.where(wrong, torch.randint(0, 3, (HEIGHT, WIDTH)), target)
        target[torch.rand(HEIGHT, WIDTH) < 0.1] = 255
        maps.append((pred, target))
    return maps


def disc(row, column, radius):
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    return ((y - row) ** 2 + (x - column) ** 2 < radius**2).long()


def _masks():
    single, stripe = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.long)
    single[11, 40] = 1
    stripe[:, 17] = 1
    return {
        "disc": disc(15, 20, 9),
        "two-discs": disc(8, 10, 6) | disc(25, 40, 8),
        "touches-border": disc(0, 0, 12),
        "ring": disc(18, 26, 14) - disc(18, 26, 8),
        "single-pixel": single,
        "stripe": stripe,
        "noise": (torch.rand(HEIGHT, WIDTH) < 0.3).long(),
        "most": 1 - disc(20, 30, 7),
        "empty": torch.zeros(HEIGHT, WIDTH, dtype=torch.long),
        "full": torch.ones(HEIGHT, WIDTH, dtype=torch.long),
    }


@pytest.fixture(params=list(_masks()))
def mask(request):
    """(H, W) of 0 and 1."""
    return _masks()[request.param]


@pytest.fixture
def disc_mask():
    """(H, W), a disc left of the middle."""
    return disc(15, 20, 9)


def _levels(kind, mask):
    noise = torch.rand(mask.shape)
    maps = {
        "soft": 0.15 + 0.5 * mask + 0.2 * noise,
        "noise": noise,
        "shifted": 0.1 + 0.8 * mask.roll((3, 5), (0, 1)),
        "perfect": mask.double(),
        "inverted": 1.0 - mask,
        "zero": torch.zeros(mask.shape),
        "one": torch.ones(mask.shape),
        "constant": torch.full(mask.shape, 0.3),
    }
    return (maps[kind] * 255).round().to(torch.uint8)


@pytest.fixture(params=["soft", "noise", "shifted", "perfect", "inverted", "zero", "one", "constant"])
def levels(request, mask):
    """(H, W) uint8, a prediction for `mask` as a grey picture."""
    return _levels(request.param, mask)
