import math

import pytest
import torch
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MulticlassPrecision,
    MulticlassRecall,
)

from convlora.errors import DataError
from convlora.metrics import (
    confusion_matrix,
    dice_per_class,
    iou_per_class,
    pixel_accuracy,
    precision_per_class,
    recall_per_class,
)

CLASSES = 5
NAN = math.nan


def matrices(maps):
    return torch.stack([confusion_matrix(pred, target, CLASSES) for pred, target in maps])


def oracle(metric, maps, **options):
    scorer = metric(num_classes=CLASSES, ignore_index=255, **options)
    for pred, target in maps:
        scorer.update(pred, target)
    return scorer.compute()


def same(got, expected):
    """The oracle divides in float32: 6e-8 relative."""
    torch.testing.assert_close(got, expected.double(), rtol=1e-6, atol=1e-7, equal_nan=True)


def test_confusion_matrix_equals_torchmetrics(class_maps):
    got = matrices(class_maps).sum(0)
    assert got.dtype == torch.int64
    assert torch.equal(got, oracle(MulticlassConfusionMatrix, class_maps))
    assert not torch.equal(got, got.T)  # rows and columns are told apart
    assert got.sum() == sum((target != 255).sum() for _, target in class_maps)


def test_data_set_scores_equal_torchmetrics(class_maps):
    matrix = matrices(class_maps).sum(0)
    occurs = matrix.sum(0) + matrix.sum(1) > 0
    assert occurs.tolist() == [True, True, True, False, True]
    for mine, metric in (
        (iou_per_class, MulticlassJaccardIndex),
        (dice_per_class, MulticlassF1Score),
        (precision_per_class, MulticlassPrecision),
        (recall_per_class, MulticlassRecall),
    ):
        expected = oracle(metric, class_maps, average="none")
        same(mine(matrix)[occurs], expected[occurs])
        assert mine(matrix)[~occurs].isnan().all()
        assert expected[:3].unique().numel() == 3
    same(pixel_accuracy(matrix), oracle(MulticlassAccuracy, class_maps, average="micro"))


def test_image_scores_equal_a_loop_over_images_and_classes(class_maps):
    iou, dice = ([[] for _ in range(CLASSES)] for _ in range(2))
    for pred, target in class_maps:
        p, t = pred[target != 255], target[target != 255]
        for k in range(CLASSES):
            both, either = ((p == k) & (t == k)).sum(), ((p == k) | (t == k)).sum()
            if either > 0:
                iou[k].append(float(both / either))
                dice[k].append(float(2 * both / (both + either)))
    assert [len(values) for values in iou] == [6, 6, 6, 0, 1]
    for mine, values in ((iou_per_class, iou), (dice_per_class, dice)):
        expected = torch.tensor([sum(v) / len(v) if v else NAN for v in values])
        same(mine(matrices(class_maps)).nanmean(0), expected)
    pooled = iou_per_class(matrices(class_maps).sum(0))
    assert (pooled - iou_per_class(matrices(class_maps)).nanmean(0))[:3].abs().min() > 1e-4


def test_precision_and_recall_are_undefined_where_nothing_is_to_be_judged():
    never_predicted = torch.tensor([[3, 0], [2, 0]])  # two true pixels of class 1, taken for class 0
    assert precision_per_class(never_predicted)[1].isnan()
    assert recall_per_class(never_predicted)[1] == 0
    assert recall_per_class(never_predicted.T)[1].isnan()
    assert precision_per_class(never_predicted.T)[1] == 0


def test_hand_computed():
    pred = torch.tensor([[0, 0, 1], [1, 1, 0]])
    target = torch.tensor([[0, 1, 1], [1, 0, 255]])
    matrix = confusion_matrix(pred, target, 3)
    assert matrix.tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    same(iou_per_class(matrix), torch.tensor([1 / 3, 2 / 4, NAN]))
    same(dice_per_class(matrix), torch.tensor([2 / 4, 4 / 6, NAN]))
    same(pixel_accuracy(matrix), torch.tensor(3 / 5))


def test_class_in_only_one_of_truth_and_prediction_scores_zero():
    missed = confusion_matrix(torch.zeros(2, 2).long(), torch.tensor([[0, 0], [0, 1]]), 3)
    invented = confusion_matrix(torch.tensor([[0, 0], [0, 2]]), torch.zeros(2, 2).long(), 3)
    assert dice_per_class(missed)[1] == 0
    assert iou_per_class(invented)[2] == 0
    # class 1: only in the first image; class 2: only in the second
    same(dice_per_class(torch.stack([missed, invented])).nanmean(0), torch.tensor([6 / 7, 0.0, 0.0]))


def test_nothing_labelled_has_no_score():
    matrix = confusion_matrix(torch.ones(2, 3).long(), torch.full((2, 3), 255), 2)
    assert matrix.sum() == 0
    assert pixel_accuracy(matrix).isnan()
    assert iou_per_class(matrix).isnan().all()


def test_predictions_on_ignored_pixels_are_not_read():
    pred, target = torch.tensor([[1, 9]]), torch.tensor([[1, 255]])
    assert confusion_matrix(pred, target, 2).tolist() == [[0, 0], [0, 1]]
    with pytest.raises(DataError, match="prediction holds the class 9"):
        confusion_matrix(pred, torch.tensor([[1, 0]]), 2)


def test_ignore_index_can_be_chosen():
    pred, target = torch.tensor([[1, 0]]), torch.tensor([[1, 0]])
    assert confusion_matrix(pred, target, 2, ignore_index=0).tolist() == [[0, 0], [0, 1]]
    assert confusion_matrix(pred, target, 2).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integer_type(dtype):
    ids = torch.arange(200).view(10, 20)  # 199 * 200 overflows uint8
    matrix = confusion_matrix(ids.to(dtype), ids.to(dtype), 200)
    assert torch.equal(matrix, torch.eye(200, dtype=torch.int64))


@pytest.mark.parametrize(
    ("pred", "target", "message"),
    [
        (torch.zeros(2, 3).long(), torch.zeros(3, 2).long(), r"got \(2, 3\) and \(3, 2\)"),
        (torch.zeros(1, 2, 2).long(), torch.zeros(1, 2, 2).long(), "one image at a time"),
        (torch.zeros(0, 2).long(), torch.zeros(0, 2).long(), r"got \(0, 2\)"),
        (torch.zeros(2, 2), torch.zeros(2, 2).long(), "float32 in the prediction.*argmax"),
        (torch.zeros(2, 2).long(), torch.full((2, 2), 4), "mask .*holds the class 4; classes are 0 to 2"),
        (torch.full((2, 2), -1), torch.zeros(2, 2).long(), "prediction holds the class -1"),
    ],
)
def test_what_is_refused(pred, target, message):
    with pytest.raises(DataError, match=message):
        confusion_matrix(pred, target, 3)
