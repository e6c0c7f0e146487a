"""Against the Mask2Former loss of transformers, and against the slow formula where labels are ignored."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F
from transformers import Mask2FormerConfig
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from convlora.errors import ConfigError, DataError
from convlora.losses import (
    MaskClassificationCosts,
    MaskClassificationWeights,
    get_loss,
    mask_classification_loss,
)
from convlora.losses.mask_classification import pairwise_costs
from convlora.losses.points import PointSampling

K, Q, POINTS = 5, 7, 112
PARTS = ("class_", "mask", "dice")


def sample(batch=3, size=(16, 20), labels_size=(32, 40), classes=K):
    """Logits, and blocky labels as real masks have; each image lacks some classes."""
    torch.manual_seed(batch)
    coarse = torch.randint(0, classes, (batch, 4, 5))
    target = coarse.repeat_interleave(labels_size[0] // 4, 1).repeat_interleave(labels_size[1] // 5, 2)
    masks = (2 * torch.randn(batch, Q, *size)).requires_grad_()
    return masks, torch.randn(batch, Q, K + 1).requires_grad_(), target


def transformers_parts(masks, classes, target, seed, no_object=0.1):
    config = Mask2FormerConfig(num_labels=K, train_num_points=POINTS, no_object_weight=no_object)
    assert (config.class_weight, config.mask_weight, config.dice_weight) == (2, 5, 5)  # the costs
    ids = [image.unique() for image in target]
    ids = [labels[labels != 255] for labels in ids]
    maps = [(image == labels[:, None, None]).float() for image, labels in zip(target, ids, strict=True)]
    torch.manual_seed(seed)
    parts = Mask2FormerLoss(config, {})(masks, classes, maps, ids)
    return [parts[f"loss_{name}"] for name in ("cross_entropy", "mask", "dice")]


def ours(masks, classes, target, seed, **options):
    torch.manual_seed(seed)
    return mask_classification_loss(masks, classes, target, **({"num_points": POINTS} | options))


def assert_same_parts(got, expected, inputs):
    """Values and gradients of each part.

    Both sides interpolate 32 x 40 labels at float32 coordinates, by different arithmetic: 1e-5 of a pixel.
    """
    for name, value, reference in zip(PARTS, got[1:], expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        gradients = [
            torch.autograd.grad(v, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
            for v in (value, reference)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
        active = gradients[0][1 if name == "class_" else 0]
        assert active.any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "options",
    [{}, {"batch": 1}, {"labels_size": (16, 20)}, {"classes": 1}, {"batch": 2, "size": (9, 31)}],
    ids=str,
)
def test_equals_transformers(seed, options):
    masks, classes, target = sample(**options)
    assert_same_parts(
        ours(masks, classes, target, seed), transformers_parts(masks, classes, target, seed), (masks, classes)
    )


@pytest.mark.parametrize("empty", [[0], [1], [0, 2]])
def test_images_of_nothing_but_255_have_no_part(empty):
    """There their queries learn 'no object', which is taken off the weighted mean here."""
    masks, classes, target = sample()
    target[empty] = 255
    got = ours(masks, classes, target, seed=1)
    theirs, mask, dice = transformers_parts(masks, classes, target, seed=1)
    matches = sum(int((image.unique() != 255).sum()) for image in target)
    weight_known = matches + 0.1 * ((3 - len(empty)) * Q - matches)
    weight_empty = 0.1 * len(empty) * Q
    nothing = torch.full((len(empty) * Q,), K)
    of_empty = 0.1 * F.cross_entropy(classes[empty].flatten(0, 1), nothing, reduction="sum")
    class_ = (theirs * (weight_known + weight_empty) - of_empty) / weight_known
    assert_same_parts(got, (class_, mask, dice), (masks, classes))
    for gradient in torch.autograd.grad(got.total, (masks, classes)):
        assert not gradient[empty].any()
        assert gradient.any()


def test_no_object_weight_equals_transformers():
    masks, classes, target = sample()
    got = ours(masks, classes, target, 0, weights=MaskClassificationWeights(no_object=0.7))
    assert_same_parts(got, transformers_parts(masks, classes, target, 0, no_object=0.7), (masks, classes))
    assert not torch.allclose(got.class_, ours(masks, classes, target, 0).class_)


@pytest.mark.parametrize("no_object", [0.0, 0.1])
def test_batch_without_any_label_teaches_nothing(no_object):
    masks, classes, target = sample()
    weights = MaskClassificationWeights(no_object=no_object)
    got = ours(masks, classes, torch.full_like(target, 255), 0, weights=weights)
    assert got.total == 0
    for gradient in torch.autograd.grad(got.total, (masks, classes)):
        assert not gradient.any()


def test_weights_are_applied():
    masks, classes, target = sample()
    got = ours(masks, classes, target, 0)
    torch.testing.assert_close(got.total, 10 * got.class_ + 5 * got.mask + 5 * got.dice)
    official = ours(masks, classes, target, 0, weights=MaskClassificationWeights.official())
    torch.testing.assert_close(official.total, got.class_ + got.mask + got.dice)
    assert MaskClassificationWeights.official() == MaskClassificationWeights(1, 1, 1, no_object=0.1)


@pytest.mark.parametrize(
    ("name", "factors"), [("mask-classification", (10, 5, 5)), ("mask-classification-official", (1, 1, 1))]
)
def test_table_entries_return_the_total(name, factors):
    masks, classes, target = sample()
    torch.manual_seed(2)
    total = get_loss(name)(masks, classes, target)
    parts = ours(masks, classes, target, 2, num_points=12544)[1:]
    torch.testing.assert_close(total, sum(f * part for f, part in zip(factors, parts, strict=True)))


# --- ignored labels: the slow formula ---


def at(maps, points):
    """Interpolate (n, h, w) at points (P, 2): (n, P)."""
    grid = (2 * points - 1)[None, :, None]
    return F.grid_sample(maps[None], grid, align_corners=False)[0, :, :, 0]


def dice(x, y):
    p = x.sigmoid()
    return 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)


def slow_parts(masks, classes, target, seed):
    """Pair by pair, dropping the points that touch an ignored pixel from every sum."""
    torch.manual_seed(seed)
    ignored = (target == 255).float()
    matches = []
    for b in range(len(target)):
        points = torch.rand(POINTS, 2)
        points = points[at(ignored[b : b + 1], points)[0] == 0]
        ids = [k for k in range(K) if (target[b] == k).any()]
        cost = torch.zeros(Q, len(ids))
        for column, k in enumerate(ids):
            y = at((target[b : b + 1] == k).float(), points)[0]
            for q in range(Q):
                x = at(masks[b, q : q + 1].detach(), points)[0]
                bce = F.binary_cross_entropy_with_logits(x, y)
                cost[q, column] = 5 * bce + 5 * dice(x, y) - 2 * classes[b, q].detach().softmax(0)[k]
        matches += [(b, q, ids[column]) for q, column in zip(*linear_sum_assignment(cost), strict=True)]
    candidates = torch.rand(len(matches), 3 * POINTS, 2)
    uniform = torch.rand(len(matches), POINTS - int(0.75 * POINTS), 2)
    labels = torch.full(classes.shape[:2], K)
    mask_losses, dice_losses = [], []
    for (b, q, k), candidate, extra in zip(matches, candidates, uniform, strict=True):
        labels[b, q] = k
        candidate = candidate[at(ignored[b : b + 1], candidate)[0] == 0]
        nearest = at(masks[b, q : q + 1].detach(), candidate)[0].abs().argsort()[: int(0.75 * POINTS)]
        points = torch.cat([candidate[nearest], extra[at(ignored[b : b + 1], extra)[0] == 0]])
        x, y = at(masks[b, q : q + 1], points)[0], at((target[b : b + 1] == k).float(), points)[0]
        mask_losses.append(F.binary_cross_entropy_with_logits(x, y))
        dice_losses.append(dice(x, y))
    weight = torch.tensor([1.0] * K + [0.1])
    class_ = F.cross_entropy(classes.flatten(0, 1), labels.flatten(), weight)
    return [class_, torch.stack(mask_losses).mean(), torch.stack(dice_losses).mean()]


@pytest.mark.parametrize("seed", range(3))
def test_ignored_labels_equal_the_slow_formula(seed):
    masks, classes, target = sample()
    whole = ours(masks, classes, target, seed)
    target[0, 5:20, 8:30] = 255
    target[1, :, :7] = 255
    got = ours(masks, classes, target, seed)
    assert_same_parts(got, slow_parts(masks, classes, target, seed), (masks, classes))
    assert not torch.allclose(got.total, whole.total)


def test_pairwise_costs_equal_the_slow_formula_over_labelled_points():
    masks, _, target = sample()
    target[0, 5:20, 8:30] = 255
    target[1, :, :7] = 255
    target[2] = 255
    sampling = PointSampling(POINTS, 3.0, 0.75, torch.Generator().manual_seed(0))
    got = pairwise_costs(masks.detach(), target, K, sampling)
    everywhere = torch.rand(3, POINTS, 2, generator=torch.Generator().manual_seed(0))
    for b in range(2):
        points = everywhere[b][at((target[b : b + 1] == 255).float(), everywhere[b])[0] == 0]
        assert 20 < len(points) < POINTS
        for q in range(Q):
            x = at(masks[b, q : q + 1].detach(), points)[0]
            for k in range(K):
                y = at((target[b : b + 1] == k).float(), points)[0]
                expected = torch.stack([F.binary_cross_entropy_with_logits(x, y), dice(x, y)])
                # float32 sums of 112 points at coordinates that differ by 1e-5 of a pixel
                torch.testing.assert_close(
                    torch.stack([c[b, q, k] for c in got]), expected, rtol=1e-4, atol=1e-5
                )
    assert all(not cost[2].any() for cost in got)  # nothing labelled costs nothing


def test_slow_formula_agrees_with_transformers():
    masks, classes, target = sample()
    for a, b in zip(
        slow_parts(masks, classes, target, 0), transformers_parts(masks, classes, target, 0), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# --- behaviour ---


def halves(scale):
    """Two classes, left and right; query 2 is the left half and query 0 the right one."""
    target = torch.zeros(1, 128, 128, dtype=torch.int64)
    target[..., 64:] = 1
    masks, classes = torch.full((1, 3, 128, 128), -scale), torch.full((1, 3, 3), -scale)
    masks[0, 2, :, :64] = masks[0, 0, :, 64:] = scale
    classes[0, 2, 0] = classes[0, 0, 1] = classes[0, 1, 2] = scale
    return masks, classes, target


def test_ideal_is_near_zero_and_worst_near_one():
    masks, classes, target = halves(8.0)
    # the two columns of pixels at the boundary and the frame (4 of 128) are interpolated, so not exactly zero
    ideal = ours(masks, classes, target, 0, num_points=4000, importance_ratio=0.0)
    assert ideal.class_ < 1e-5
    assert ideal.mask < 0.1
    assert ideal.dice < 0.02
    nothing = torch.tensor([-8.0, -8.0, 8.0]).expand(1, 3, 3)
    worst = ours(torch.full_like(masks, -8.0), nothing, target, 0, num_points=4000)
    assert worst.dice > 0.9
    assert worst.class_ > 5
    assert worst.mask > 2


def test_by_hand():
    # Logits 0 everywhere, one class that fills the image, one query: away from the frame truth is 1.
    # BCE is ln 2; Dice over n points is 1 - (n + 1) / (1.5 n + 1); class: ln 2, one of two.
    target = torch.zeros(1, 2048, 2048, dtype=torch.uint8)  # the frame is 0.1 % of it
    got = ours(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 2), target, 0, num_points=1000)
    assert got.mask.item() == pytest.approx(0.6931472, abs=1e-6)
    assert got.dice.item() == pytest.approx(1 - 1001 / 1501, abs=1e-3)
    assert got.class_.item() == pytest.approx(0.6931472, abs=1e-6)


def test_costs_decide_the_match():
    masks, classes, target = halves(8.0)
    swapped = classes[:, [2, 1, 0]]  # the classes say the opposite of the masks
    by_mask = ours(masks, swapped, target, 0, costs=MaskClassificationCosts(0, 5, 5))
    by_class = ours(masks, swapped, target, 0, costs=MaskClassificationCosts(2, 0, 0))
    assert by_mask.mask < by_class.mask / 5
    assert by_class.class_ < by_mask.class_ / 5


def test_diverged_query_is_matched_last():
    masks, classes, target = halves(8.0)
    masks[0, 1] = torch.nan
    got = ours(masks, classes, target, 0, num_points=500)
    assert got.total.isfinite()


def test_generator_decides_the_points():
    masks, classes, target = sample()

    def run(seed):
        return mask_classification_loss(
            masks, classes, target, num_points=POINTS, generator=torch.Generator().manual_seed(seed)
        ).total

    state = torch.get_rng_state()
    assert run(1) == run(1) != run(2)
    assert torch.equal(torch.get_rng_state(), state)


# --- errors ---


def test_more_classes_than_queries():
    masks, classes, target = sample()
    with pytest.raises(
        ConfigError, match=r"num_masks is 3 but an image has [45] classes.*Set num_masks to 5 or more"
    ):
        mask_classification_loss(masks[:, :3], classes[:, :3], target)


def test_shapes_that_do_not_fit():
    masks, classes, target = sample()
    with pytest.raises(DataError, match=r"labels \(B, H, W\); got \(3, 7, 16, 20\), \(3, 6, 6\)"):
        mask_classification_loss(masks, classes[:, :6], target)
    with pytest.raises(DataError, match="needs mask logits"):
        mask_classification_loss(masks, classes, target[:2])


def test_options_out_of_range():
    masks, classes, target = sample()
    with pytest.raises(ConfigError, match="num_points 0"):
        mask_classification_loss(masks, classes, target, num_points=0)
    with pytest.raises(ConfigError, match=r"dice=-1\.0.*zero or more"):
        MaskClassificationWeights(dice=-1.0)
    with pytest.raises(ConfigError, match="one part above zero"):
        MaskClassificationCosts(0, 0, 0)
