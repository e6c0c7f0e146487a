"""The linear probe: against scikit-learn and torchmetrics on all positions, and what it cannot do."""

import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torchmetrics.functional.segmentation import mean_iou

from convlora.analysis.probe import check_probe, linear_probe
from convlora.errors import DataError, MissingExtraError


def images(count, seed, overlap, classes=3):
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        labels = rng.integers(0, classes, 200).astype(np.uint8)
        features = rng.normal(size=(200, 5)) * overlap
        features[:, :classes] += np.eye(classes)[labels]
        labels[rng.random(200) < 0.1] = 255
        made.append((features.astype(np.float32), labels))
    return made


def test_scores_are_those_of_scikit_learn_and_torchmetrics():
    train, test = images(4, 0, 0.6), images(3, 1, 0.6)
    found = linear_probe(train, test)
    features, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
    features, labels = features[labels != 255], labels[labels != 255]
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(max_iter=5000).fit(scaler.transform(features), labels)
    own, truth = (np.concatenate(parts) for parts in zip(*test, strict=True))
    own, truth = own[truth != 255], truth[truth != 255]
    predicted = model.predict(scaler.transform(own))
    # the order of the positions changes the last steps of the solver, and so a position on the border
    assert found.accuracy == pytest.approx((predicted == truth).mean(), abs=0.01)
    shape = (1, len(truth), 1)
    expected = mean_iou(
        torch.from_numpy(predicted.astype(np.int64)).view(shape),
        torch.from_numpy(truth.astype(np.int64)).view(shape),
        num_classes=3,
        per_class=True,
        input_format="index",
    )[0]
    assert [found.iou[c] for c in range(3)] == pytest.approx(expected.tolist(), abs=0.02)
    assert found.mean_iou == pytest.approx(np.mean(list(found.iou.values())))
    assert 0.5 < found.mean_iou < 0.99


def test_clear_and_unclear_features():
    assert linear_probe(images(4, 0, 0.01), images(2, 1, 0.01)).mean_iou == 1
    noise = linear_probe(images(4, 0, 1e4), images(2, 1, 1e4))
    assert noise.accuracy == pytest.approx(1 / 3, abs=0.1)


def test_the_same_twice_and_another_draw():
    train, test = images(3, 0, 0.8), images(2, 1, 0.8)
    big = [(np.concatenate([f] * 3), np.concatenate([y] * 3)) for f, y in train]  # of 600, 256 are drawn
    assert linear_probe(big, test) == linear_probe(big, test)
    assert linear_probe(big, test, seed=1) != linear_probe(big, test, seed=0)


def test_nothing_to_probe():
    train = [(f, np.zeros_like(y)) for f, y in images(2, 0, 1)]
    with pytest.raises(DataError, match="hold fewer than two classes"):
        linear_probe(train, train)


def test_nothing_to_score():
    test = [(f, np.full_like(y, 255)) for f, y in images(2, 1, 0.6)]
    with pytest.raises(
        DataError, match=r"All positions .* are ignored \(255\), so there is nothing to score"
    ):
        linear_probe(images(2, 0, 0.6), test)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'convlora\[analyze\]'"):
        check_probe()
