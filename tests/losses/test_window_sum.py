"""Counts of a window by sums of 1, 2, 4, ... neighbours, against the window itself."""

import pytest
import torch

from convlora.losses.structure import _window_sum, count_in_window


@pytest.mark.parametrize("window", [1, 2, 3, 5, 6, 8, 31])
@pytest.mark.parametrize("dim", [1, 2])
def test_every_window(window, dim):
    values = torch.randint(0, 5, (2, 40, 37), dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    expected = values.unfold(dim, window, 1).sum(-1, dtype=torch.int16)
    assert torch.equal(_window_sum(values, dim, window), expected)
    assert expected.any()


@pytest.mark.parametrize("outside", [0, 1])
def test_counts_of_the_window_are_exact(outside):
    values = (torch.rand(2, 50, 33, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    padded = torch.nn.functional.pad(values, (15, 15, 15, 15), value=outside)
    expected = padded.unfold(1, 31, 1).unfold(2, 31, 1).sum((-1, -2))
    assert torch.equal(count_in_window(values, outside).float(), expected)
    assert expected.unique().numel() > 100
    assert count_in_window(torch.ones(1, 31, 31), outside)[0, 15, 15] == 961
