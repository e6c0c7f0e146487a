"""Draws from a seed of their own leave everybody else's alone."""

import pytest
import torch

from convlora.data.augment import AugmentConfig, Augmenter
from convlora.model import Segmenter
from convlora.randomness import seeded


def test_the_draws_are_those_of_the_seed():
    torch.manual_seed(5)
    wanted = torch.randn(3)
    torch.manual_seed(6)
    after = torch.randn(3)
    torch.manual_seed(6)
    with seeded(5):
        assert torch.equal(torch.randn(3), wanted)
    assert torch.equal(torch.randn(3), after)


def test_an_error_gives_the_state_back_too():
    torch.manual_seed(6)
    wanted = torch.randn(3)
    torch.manual_seed(6)
    with pytest.raises(RuntimeError), seeded(5):
        torch.randn(-1)
    assert torch.equal(torch.randn(3), wanted)


def test_gpus_are_not_seeded(small_backbone, monkeypatch):
    """`torch.manual_seed` would: at every image that is augmented."""
    seeds = []
    for backend in (torch.cuda, torch.xpu, torch.mps):
        for name in ("manual_seed", "manual_seed_all"):
            if hasattr(backend, name):
                monkeypatch.setattr(backend, name, lambda seed, name=name: seeds.append(name))
    torch.manual_seed(1)
    assert seeds  # so it is seen
    seeds.clear()
    Segmenter.from_backbone(str(small_backbone), ("background", "a"), "conv-lora", seed=7)
    augmenter = Augmenter(AugmentConfig.preset("strong"))
    pixels, valid = torch.rand(3, 8, 8), torch.ones(8, 8, dtype=torch.bool)
    first, _ = augmenter(pixels, torch.zeros(8, 8, dtype=torch.uint8), 3, valid)
    assert not torch.equal(first, pixels)
    assert {Augmenter(AugmentConfig()).is_flipped(seed) for seed in range(9)} == {True, False}
    assert seeds == []
