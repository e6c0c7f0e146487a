import pytest
import torch
from torch.nn import functional as F

from convlora.errors import ConfigError
from convlora.losses.points import (
    PointSampling,
    label_shares,
    labelled,
    sample_logits,
    uncertain_points,
)


@pytest.fixture
def target():
    torch.manual_seed(0)
    target = torch.randint(0, 4, (2, 9, 13))
    target[target == 3] = 255
    return target


def one_hot_sampled(target, image, points, label):
    """The slow way: grid_sample of the full map of one label, for each set of points."""
    maps = (target == label)[image, None].float()
    grid = 2 * points[:, :, None] - 1
    return F.grid_sample(maps, grid, align_corners=False)[:, 0, :, 0]


def test_label_shares_equal_interpolated_one_hot_maps(target):
    image = torch.tensor([1, 0, 1])
    points = torch.rand(3, 500, 2)
    points[0, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])  # beyond the last centres
    ids = torch.tensor([[0, 1, 2, 255]])
    got = label_shares(target, image, points, ids)
    for index, label in enumerate(ids[0].tolist()):
        expected = one_hot_sampled(target, image, points, label)
        torch.testing.assert_close(got[:, index], expected, rtol=0, atol=1e-5)  # 13 columns x float32 epsilon
        assert 0.1 < expected.mean() < 0.5
    own = label_shares(target, image, points, torch.tensor([[2], [0], [1]]))[:, 0]
    torch.testing.assert_close(own, got[torch.arange(3), [2, 0, 1]], rtol=0, atol=0)


def test_labelled_points_touch_no_ignored_pixel(target):
    image, points = torch.tensor([0, 1]), torch.rand(2, 500, 2)
    ignored = one_hot_sampled(target, image, points, 255)
    got = labelled(target, image, points)
    assert torch.equal(got, ignored == 0)
    assert 0.1 < got.float().mean() < 0.9


def test_sample_logits_reads_pixel_centres():
    logits = torch.arange(6.0).reshape(1, 1, 2, 3)
    points = torch.tensor([[[0.5 / 3, 0.25], [2.5 / 3, 0.75], [0.5, 0.5]]])
    torch.testing.assert_close(sample_logits(logits, points), torch.tensor([[[0.0, 5.0, 2.5]]]))


@pytest.mark.parametrize("ratio", [0.0, 0.75, 1.0])
def test_uncertain_points_are_the_least_certain_labelled_candidates(target, ratio):
    masks = torch.randn(2, 6, 8)
    image = torch.tensor([0, 1])
    sampling = PointSampling(24, 5.0, ratio, torch.Generator().manual_seed(1))
    points = uncertain_points(masks, target, image, sampling)
    assert points.shape == (2, 24, 2)
    candidates = torch.rand(2, 120, 2, generator=torch.Generator().manual_seed(1))
    certainty = sample_logits(masks[:, None], candidates)[:, 0].abs()
    keep = int(24 * ratio)
    for n in range(2):
        valid = labelled(target, image, candidates)[n]
        assert 24 <= valid.sum() < 120
        best = candidates[n][valid][certainty[n][valid].argsort()[:keep]]
        assert torch.equal(points[n, :keep], best)


@pytest.mark.parametrize("options", [(0, 3.0, 0.75), (10, 0.5, 0.75), (10, 3.0, 1.5)])
def test_options_out_of_range(options):
    with pytest.raises(ConfigError, match=f"num_points {options[0]}, oversample_ratio {options[1]}"):
        PointSampling(*options, None).check()
