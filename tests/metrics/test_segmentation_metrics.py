import math
import pickle

import pytest
import torch

from convlora.errors import ConfigError, DataError
from convlora.metrics import (
    LOWER_IS_BETTER,
    SALIENCY_KEYS,
    SegmentationMetrics,
    confusion_matrix,
    dice_per_class,
    iou_per_class,
    pixel_accuracy,
    precision_per_class,
    recall_per_class,
    saliency_measures,
)

NAMES = ("background", "leaf", "stem", "never", "rare")
FOREGROUND = (1, 2, 3, 4)
# Sums of a few float64 fractions in another order.
ROUNDING = 1e-12


def several_classes(maps=()):
    metrics = SegmentationMetrics(NAMES, FOREGROUND, binary=False)
    for pred, target in maps:
        metrics.update(pred, target)
    return metrics


def binary_images():
    """(pred, target, probability); the third without foreground, the fourth without labels."""
    images = []
    for image in range(5):
        target = torch.zeros(19, 23 + image, dtype=torch.long)
        target[4 : 9 + image, 6:15] = image != 2
        target[0:3] = 255
        if image == 3:
            target[:] = 255
        probability = (0.3 * (target == 1) + 0.7 * torch.rand(target.shape)).double()
        images.append(((probability > 0.5).long(), target, probability))
    return images


def binary(images=()):
    metrics = SegmentationMetrics(("background", "lesion"), [1], binary=True)
    for image in images:
        metrics.update(*image)
    return metrics


def same(got, expected):
    assert list(got) == list(expected)
    assert got == pytest.approx(expected, abs=ROUNDING, nan_ok=True)


def test_scores_equal_those_of_all_images_at_once(class_maps):
    matrices = torch.stack([confusion_matrix(pred, target, 5) for pred, target in class_maps])
    pooled, foreground = matrices.sum(0), list(FOREGROUND)
    expected = {}
    for prefix, dice, iou, accuracy in (
        ("", dice_per_class(pooled), iou_per_class(pooled), pixel_accuracy(pooled)),
        (
            "image_",
            dice_per_class(matrices).nanmean(0),
            iou_per_class(matrices).nanmean(0),
            pixel_accuracy(matrices).mean(),
        ),
    ):
        expected[f"{prefix}mean_dice_foreground"] = float(dice[foreground].nanmean())
        expected[f"{prefix}mean_iou"] = float(iou.nanmean())
        expected[f"{prefix}mean_iou_foreground"] = float(iou[foreground].nanmean())
        expected[f"{prefix}pixel_accuracy"] = float(accuracy)
        expected |= {f"{prefix}dice/{name}": float(dice[k]) for k, name in enumerate(NAMES)}
        expected |= {f"{prefix}iou/{name}": float(iou[k]) for k, name in enumerate(NAMES)}
        if not prefix:
            for kind, values in (
                ("precision", precision_per_class(pooled)),
                ("recall", recall_per_class(pooled)),
            ):
                expected |= {f"{kind}/{name}": float(values[k]) for k, name in enumerate(NAMES)}
    got = several_classes(class_maps).compute()
    same(got, {**expected, "n_images": 6})
    assert math.isnan(got["dice/never"])
    assert math.isnan(got["image_iou/never"])
    distinct = {round(value, 6) for value in got.values() if value == value}
    # six are NaN; 'rare' is in one image, so its two levels agree, and nothing is taken for it, so its
    # recall is its IoU; all others differ on this data
    assert len(distinct) == len(got) - 9


def test_an_image_has_the_scores_of_a_data_set_of_its_own(class_maps):
    metrics = several_classes()
    for pred, target in class_maps:
        alone = several_classes([(pred, target)]).compute()
        wanted = {key: value for key, value in alone.items() if not key.startswith(("image_", "n_"))}
        same(metrics.update(pred, target), wanted)
    both = binary()
    for image in binary_images()[:3]:
        alone = binary([image]).compute()
        wanted = {key: value for key, value in alone.items() if not key.startswith(("image_", "n_"))}
        same(both.update(*image), wanted)
    assert metrics.n_images == 6


def test_binary_adds_the_mean_of_the_saliency_measures():
    images = binary_images()
    got = binary(images).compute()
    scored = [saliency_measures(probability, target) for _, target, probability in images]
    for key in SALIENCY_KEYS:
        values = [measures[key] for measures in scored if not math.isnan(measures[key])]
        assert len(values) == 4  # the image without labels has none
        assert got[key] == pytest.approx(sum(values) / 4, abs=ROUNDING)
        assert 0 < got[key] < 1
    assert got["n_images"] == 5
    assert len(got) == 2 * (4 + 2 * 2) + 2 * 2 + 5 + 1


def test_images_without_a_class_are_left_out_of_its_image_mean():
    empty, hit = torch.zeros(2, 2).long(), torch.tensor([[0, 1], [1, 1]])
    metrics = SegmentationMetrics(("background", "lesion"), [1], binary=False)
    metrics.update(empty, empty)
    metrics.update(hit, hit)
    assert metrics.compute()["image_dice/lesion"] == 1
    metrics.update(hit, empty)  # a false alarm counts
    assert metrics.compute()["image_dice/lesion"] == 0.5
    assert metrics.compute()["dice/lesion"] == pytest.approx(2 * 3 / (3 + 6))


@pytest.mark.parametrize("split", [0, 1, 3])
def test_merged_states_equal_one(split):
    images = binary_images()
    one, first, second = binary(images), binary(images[:split]), binary(images[split:])
    summed = binary()
    summed.load_state_tensor(first.state_tensor() + second.state_tensor())
    same(summed.compute(), one.compute())
    if split:
        assert first.compute()["mae"] != one.compute()["mae"]
    first.merge(second)
    same(first.compute(), one.compute())
    same(second.compute(), binary(images[split:]).compute())  # the merged one is left alone


def test_state_is_a_copy_of_constant_size(class_maps):
    metrics = several_classes()
    empty = metrics.state_tensor()
    assert empty.dtype == torch.float64
    assert empty.ndim == 1
    for pred, target in class_maps:
        metrics.update(pred, target)
    full = metrics.state_tensor()
    assert full.shape == empty.shape
    assert not empty.any()
    before = metrics.compute()
    full.zero_()
    same(metrics.compute(), before)
    metrics.load_state_tensor(empty)
    empty += 1
    assert metrics.n_images == 0


def test_survives_pickling(class_maps):
    metrics = several_classes(class_maps[:3])
    copy = pickle.loads(pickle.dumps(metrics))
    for pred, target in class_maps[3:]:
        copy.update(pred, target)
    same(copy.compute(), several_classes(class_maps).compute())
    assert metrics.n_images == 3


def test_nothing_seen_has_no_scores():
    scores = binary().compute()
    assert scores.pop("n_images") == 0
    assert all(math.isnan(value) for value in scores.values())


def test_directions():
    assert set(SALIENCY_KEYS) > LOWER_IS_BETTER
    perfect, poor = binary(), binary()
    target = torch.tensor([[0, 0, 0], [0, 1, 1], [0, 1, 1]])
    for metrics, probability in ((perfect, target.double()), (poor, target.double().flip(0))):
        metrics.update((probability > 0.5).long(), target, probability)
    for key, value in perfect.compute().items():
        if key != "n_images":
            other = poor.compute()[key]
            assert value < other if key in LOWER_IS_BETTER else value > other, key


def test_a_refused_image_changes_nothing():
    metrics = binary(binary_images())
    before = metrics.state_tensor()
    pred, target, probability = binary_images()[0]
    for bad in (
        (pred + 1, target, probability),
        (pred, target, probability + 1),
        (pred[1:], target, probability),
    ):
        with pytest.raises(DataError):
            metrics.update(*bad)
    assert torch.equal(metrics.state_tensor(), before)
    metrics.update(pred, target, probability)
    assert not torch.equal(metrics.state_tensor(), before)


def test_probabilities_go_with_binary():
    pred, target, probability = binary_images()[0]
    with pytest.raises(DataError, match="need a foreground probability map"):
        binary().update(pred, target)
    with pytest.raises(DataError, match="take no foreground probability map"):
        several_classes().update(pred, target, probability)


@pytest.mark.parametrize(
    ("names", "foreground", "is_binary", "message"),
    [
        ((), [1], False, "need names"),
        (("a", "a"), [1], False, "each once, got"),
        (("a", "b"), [], False, "Foreground is one or more"),
        (("a", "b"), [2], False, r"ids 0 to 1, each once, got \[2\]"),
        (("a", "b"), [-1], False, r"got \[-1\]"),
        (("a", "b"), [1, 1], False, r"got \[1, 1\]"),
        (("a", "b", "c"), [1], True, "two classes and foreground"),
        (("a", "b"), [0], True, r"foreground \[0\]"),
    ],
)
def test_what_is_refused(names, foreground, is_binary, message):
    with pytest.raises(ConfigError, match=message):
        SegmentationMetrics(names, foreground, is_binary)


def test_states_of_other_classes_are_refused():
    with pytest.raises(ConfigError, match="same classes"):
        binary().load_state_tensor(several_classes().state_tensor())
    with pytest.raises(ConfigError, match=r"torch\.float32"):
        binary().load_state_tensor(binary().state_tensor().float())
    with pytest.raises(ConfigError, match="merge only with the same classes"):
        binary().merge(several_classes())
