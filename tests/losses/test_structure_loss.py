import pytest
import torch
from torch.nn import functional as F

from convlora.losses import structure_loss, structure_loss_official
from convlora.losses.common import binary_pixels
from convlora.losses.structure import boundary_weights


def pranet(logits, y, cross_entropy):
    """The structure loss as published, with the given cross entropy (B, 1, H, W) or scalar."""
    weight = 1 + 5 * (F.avg_pool2d(y, kernel_size=31, stride=1, padding=15) - y).abs()
    bce = (weight * cross_entropy).sum(dim=(2, 3)) / weight.sum(dim=(2, 3))
    p = logits.sigmoid()
    intersection = (p * y * weight).sum(dim=(2, 3))
    union = ((p + y) * weight).sum(dim=(2, 3))
    return (bce + 1 - (intersection + 1) / (union - intersection + 1)).mean()


def intended(logits, y):
    return pranet(logits, y, F.binary_cross_entropy_with_logits(logits, y, reduction="none"))


def official(logits, y):
    with pytest.warns(UserWarning, match="reduce args will be deprecated"):
        scalar = F.binary_cross_entropy_with_logits(logits, y, reduce="none")  # the literal legacy argument
    assert scalar.ndim == 0
    return pranet(logits, y, scalar)


@pytest.fixture
def sample():
    torch.manual_seed(0)
    target = torch.zeros(3, 40, 52, dtype=torch.int64)
    target[0, 5:30, 10:45] = 1
    target[1, 20:24, :] = 1
    return torch.randn(3, 1, 40, 52, requires_grad=True), target  # the third image has no foreground


@pytest.mark.parametrize(
    ("loss", "oracle"), [(structure_loss, intended), (structure_loss_official, official)]
)
def test_equals_the_formula_where_nothing_is_ignored(sample, loss, oracle):
    logits, target = sample
    got, expected = loss(logits, target), oracle(logits, target[:, None].float())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)  # order of 2,080 float32 additions
    gradients = [torch.autograd.grad(value, logits)[0] for value in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)  # gradients of one pixel are near 1e-4


def test_the_two_forms_differ(sample):
    logits, target = sample
    assert (structure_loss(logits, target) - structure_loss_official(logits, target)).abs() > 1e-3


def test_hand_computed_value():
    # One pixel, foreground, logit 0. Its window holds one foreground pixel of 961: w = 1 + 5 * 960 / 961.
    # BCE: ln 2. I = w / 2, U = 1.5 w, so IoU loss = 1 - (w / 2 + 1) / (w + 1).
    loss = structure_loss(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, dtype=torch.int64))
    assert loss.item() == pytest.approx(0.6931472 + 1 - (5.9947971 / 2 + 1) / (5.9947971 + 1), rel=1e-6)


def test_boundary_weights_leave_ignored_pixels_out_of_the_mean():
    torch.manual_seed(1)
    target = torch.randint(0, 2, (1, 36, 34))
    target[0, 4:20, 6:30] = 255
    weights = boundary_weights(binary_pixels(torch.zeros(1, 1, 36, 34), target))[0]
    for row, column in [(0, 0), (3, 10), (21, 15), (30, 30)]:
        window = target[0, max(row - 15, 0) : row + 16, max(column - 15, 0) : column + 16]
        ignored = (window == 255).sum()
        mean = (window == 1).sum() / (961 - ignored)  # the rest beyond the edge counts as background
        expected = 1 + 5 * (mean - target[0, row, column]).abs()
        assert ignored > 0
        torch.testing.assert_close(weights[row, column], expected, rtol=1e-5, atol=0)  # float32 means
    assert not weights[target[0] == 255].any()


def test_an_uniform_image_with_an_ignored_hole_has_no_boundary_at_the_hole():
    target = torch.ones(1, 100, 100, dtype=torch.int64)
    target[0, 40:60, 40:60] = 255
    weights = boundary_weights(binary_pixels(torch.zeros(1, 1, 100, 100), target))[0]
    torch.testing.assert_close(
        weights[38:40, 40:60], torch.ones(2, 20), rtol=0, atol=1e-4
    )  # 5 x float32 means


def test_an_image_without_labels_contributes_zero(sample):
    logits, target = sample
    whole = structure_loss(logits[:2], target[:2])
    target[2] = 255
    torch.testing.assert_close(structure_loss(logits, target), whole * 2 / 3)
    gradient = torch.autograd.grad(structure_loss(logits, target), logits)[0]
    assert not gradient[2].any()
    assert gradient[:2].any()


def test_official_form_without_labels_in_an_image(sample):
    logits, target = sample
    target[2] = 255
    pair = target[:2, None].float()
    bce = F.binary_cross_entropy_with_logits(logits[:2], pair)
    expected = bce + (official(logits[:2], pair) - bce) * 2 / 3  # zero IoU loss for the third image
    torch.testing.assert_close(structure_loss_official(logits, target), expected)


def test_a_boundary_pixel_costs_more_than_an_inner_one():
    target = torch.zeros(1, 64, 64, dtype=torch.int64)
    target[0, :, 32:] = 1
    perfect = torch.where(target == 1, 8.0, -8.0)[:, None]
    at_boundary, inside = perfect.clone(), perfect.clone()
    at_boundary[0, 0, 32, 32] = -8
    inside[0, 0, 32, 8] = 8
    assert structure_loss(at_boundary, target) > 1.5 * structure_loss(inside, target)
