import pytest
import torch
from loss_samples import CLASSES, labels, logits
from torch.nn import functional as F

from convlora.errors import ConfigError
from convlora.losses import (
    balanced_bce_loss,
    bce_dice_loss,
    bce_loss,
    binary_focal_dice_loss,
    cross_entropy_dice_loss,
    cross_entropy_loss,
    dice_loss,
    focal_dice_loss,
    focal_loss,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(5)


@pytest.fixture(params=[False, True], ids=["all-labelled", "some-ignored"])
def binary(request):
    masks, _ = logits("binary")
    return masks.double().requires_grad_(), labels("binary", ignored=request.param)


@pytest.fixture(params=[False, True], ids=["all-labelled", "some-ignored"])
def several(request):
    masks, _ = logits("per-class")
    return masks.double().requires_grad_(), labels("per-class", ignored=request.param)


def assert_same(got, expected, logits):
    """Value and gradient; float64 on both sides, so the default tolerance of 1e-7 is rounding."""
    torch.testing.assert_close(got, expected)
    gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (got, expected)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].any()


def labelled(masks, target):
    """Logits and 0/1 truth of the labelled pixels only, as vectors."""
    keep = target != 255
    return masks[:, 0][keep], target[keep].to(masks)


def official_balanced(x, y):
    """Balanced BCE as published for SBU (EVP)."""
    pos, neg = y.sum() + 1e-10, (1 - y).sum()
    return pos / (pos + neg) * F.binary_cross_entropy_with_logits(x, y, pos_weight=neg / pos)


def binary_dice(masks, target, smooth=1.0):
    losses = []
    for x, t in zip(masks[:, 0], target, strict=True):
        p, y = x[t != 255].sigmoid(), t[t != 255].to(x)
        losses.append(1 - (2 * (p * y).sum() + smooth) / (p.sum() + y.sum() + smooth))
    return torch.stack(losses).mean()


def class_dice(masks, target, smooth=1.0):
    p, t = masks.softmax(1).movedim(1, 3)[target != 255], target[target != 255]
    losses = []
    for k in t.unique().tolist():
        y = (t == k).to(p)
        losses.append(1 - (2 * (p[:, k] * y).sum() + smooth) / (p[:, k].sum() + y.sum() + smooth))
    return torch.stack(losses).mean()


# --- binary ---


def test_bce_equals_torch(binary):
    masks, target = binary
    assert_same(bce_loss(masks, target), F.binary_cross_entropy_with_logits(*labelled(masks, target)), masks)


def test_balanced_bce_equals_the_published_form(binary):
    masks, target = binary
    assert_same(balanced_bce_loss(masks, target), official_balanced(*labelled(masks, target)), masks)


def test_balanced_bce_by_hand():
    # 1 foreground and 3 background pixels, all logits 0: (1 * 3/4 + 3 * 1/4) ln 2 / 4
    target = torch.tensor([[[1, 0], [0, 0]]])
    assert balanced_bce_loss(torch.zeros(1, 1, 2, 2), target).item() == pytest.approx(0.375 * 0.6931472)


def test_balanced_bce_of_one_class_is_zero_as_in_the_published_form():
    masks = torch.randn(2, 1, 5, 5)
    for label in (0, 1):
        target = torch.full((2, 5, 5), label)
        assert balanced_bce_loss(masks, target) == 0
        # the published form leaves 1e-10 of it
        assert official_balanced(*labelled(masks, target)).item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_equals_the_formula(binary, gamma, alpha):
    masks, target = binary
    x, y = labelled(masks, target)
    p = torch.where(y == 1, x.sigmoid(), 1 - x.sigmoid())
    share = 1 if alpha is None else torch.where(y == 1, alpha, 1 - alpha)
    assert_same(focal_loss(masks, target, gamma, alpha), (-share * (1 - p) ** gamma * p.log()).mean(), masks)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_gradient_is_finite_at_extremes_for_every_gamma(gamma):
    masks = torch.tensor([1e4, -1e4]).repeat(4).reshape(1, 1, 2, 4).requires_grad_()
    target = torch.tensor([[[0, 0, 1, 1], [1, 1, 0, 0]]])
    (gradient,) = torch.autograd.grad(focal_loss(masks, target, gamma), masks)
    assert gradient.isfinite().all()
    # wrong pixels still pull with slope 1 (of 8), right ones not at all
    wrong = (masks.detach()[:, 0] > 0) != (target == 1)
    torch.testing.assert_close(gradient[:, 0].abs(), wrong / 8)


@pytest.mark.parametrize(("gamma", "alpha"), [(-1.0, None), (2.0, 1.5)])
def test_focal_options_out_of_range(gamma, alpha):
    with pytest.raises(ConfigError, match=f"gamma {gamma} and alpha {alpha}"):
        focal_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2), gamma, alpha)


def test_bce_dice_is_the_sum(binary):
    masks, target = binary
    expected = F.binary_cross_entropy_with_logits(*labelled(masks, target)) + binary_dice(masks, target)
    assert_same(bce_dice_loss(masks, target), expected, masks)


def test_binary_focal_dice_is_the_weighted_sum(binary):
    masks, target = binary
    expected = 7 * focal_loss(masks, target) + binary_dice(masks, target)
    assert_same(binary_focal_dice_loss(masks, target, focal_weight=7), expected, masks)


def test_focal_dice_of_hard_masks_equals_the_binary_loss():
    masks, target = logits("binary")[0].double().requires_grad_(), labels("binary", ignored=False)
    expected = binary_focal_dice_loss(masks, target)
    assert_same(focal_dice_loss(masks[:, 0], target == 1), expected, masks)
    assert_same(focal_dice_loss(masks[:, 0], target.double()), expected, masks)


def test_focal_part_of_soft_masks_is_least_at_the_truth():
    target = torch.full((1, 1, 1), 0.3, dtype=torch.float64)
    grid = torch.linspace(0.05, 0.95, 181, dtype=torch.float64)
    focal = [focal_dice_loss(p.logit().reshape(1, 1, 1), target, 1e6).item() for p in grid]
    assert grid[torch.tensor(focal).argmin()].item() == pytest.approx(0.3, abs=0.003)  # grid step 0.005


def test_focal_dice_without_masks_is_zero():
    assert focal_dice_loss(torch.zeros(0, 4, 4), torch.zeros(0, 4, 4)) == 0


# --- Dice ---


@pytest.mark.parametrize("smooth", [1.0, 1e-5])
def test_binary_dice_equals_the_formula(binary, smooth):
    masks, target = binary
    assert_same(dice_loss(masks, target, smooth), binary_dice(masks, target, smooth), masks)


@pytest.mark.parametrize("smooth", [1.0, 1e-5])
def test_class_dice_equals_the_formula(several, smooth):
    masks, target = several
    assert_same(dice_loss(masks, target, smooth), class_dice(masks, target, smooth), masks)


def test_class_dice_averages_the_classes_that_occur(several):
    masks, target = several
    target[target == 2] = 1  # class 2 is gone
    assert target.unique().tolist()[:3] == [0, 1, 3]
    assert_same(dice_loss(masks, target), class_dice(masks, target), masks)


def test_binary_dice_by_hand():
    # p = 0.5 everywhere, 2 of 4 pixels foreground: overlap 1, sums 2 and 2: 1 - (2 + 1) / (4 + 1)
    target = torch.tensor([[[1, 0], [1, 0]]])
    assert dice_loss(torch.zeros(1, 1, 2, 2), target).item() == pytest.approx(0.4)


def test_worst_dice_is_near_one():
    target = labels("binary", ignored=False)
    wrong = torch.where(target == 1, -30.0, 30.0)[:, None]
    # 1 - 1 / (n + 1) with n = 168 pixels; the smoothing is what keeps it below one
    assert dice_loss(wrong, target).item() == pytest.approx(1 - 1 / 169, abs=1e-6)
    assert dice_loss(torch.cat([-wrong, wrong], 1), 1 - target).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(torch.cat([-wrong, wrong], 1), target).item() > 0.99


def test_empty_image_that_is_predicted_empty_is_perfect():
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    assert dice_loss(torch.full((1, 1, 4, 4), -30.0), target).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(torch.full((1, 1, 4, 4), 30.0), target).item() == pytest.approx(1 - 1 / 17)


def test_dice_needs_smoothing():
    with pytest.raises(ConfigError, match="smooth 0; it must be above zero"):
        dice_loss(torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2), smooth=0)


# --- several classes ---

WEIGHTS = torch.tensor([0.5, 1.0, 3.0, 0.0])


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
def test_cross_entropy_equals_torch(several, weights):
    masks, target = several
    double = weights if weights is None else weights.double()
    expected = F.cross_entropy(masks, target, double, ignore_index=255)
    assert_same(cross_entropy_loss(masks, target, weights), expected, masks)
    expected = expected + class_dice(masks, target)
    assert_same(cross_entropy_dice_loss(masks, target, weights), expected, masks)


def test_cross_entropy_where_only_weightless_classes_are_labelled():
    target = torch.full((1, 3, 3), 3)
    assert cross_entropy_loss(torch.randn(1, CLASSES, 3, 3), target, WEIGHTS) == 0


def test_class_weights_of_the_wrong_length():
    with pytest.raises(ConfigError, match=r"class_weights has shape \(3,\) for 4 classes"):
        cross_entropy_loss(torch.zeros(1, CLASSES, 3, 3), torch.zeros(1, 3, 3), torch.ones(3))
