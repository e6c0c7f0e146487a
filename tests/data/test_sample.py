"""The brain sample: layout, classes, and no leak between splits."""

import builtins
import errno
import re

import numpy as np
import pytest
from PIL import Image

from convlora.data import sample
from convlora.data.check import check_dataset
from convlora.data.sample import CLASSES, write_brain_sample
from convlora.errors import DataError, MissingExtraError, WriteError


@pytest.fixture(scope="module")
def brain(tmp_path_factory):
    root = tmp_path_factory.mktemp("sample") / "brain"
    return root, write_brain_sample(root)


def test_it_is_a_good_data_set(brain):
    root, counts = brain
    report = check_dataset(root, splits=("train", "val", "test"))
    assert report.problems == []
    assert counts == {split: len(pairs) for split, pairs in report.dataset.splits.items()}
    assert counts["train"] >= 30
    assert min(counts["val"], counts["test"]) >= 10
    assert report.dataset.classes == CLASSES
    assert min(report.dataset.shares.values()) > 0.05
    assert "McGill" in (root / "README.txt").read_text()


def test_white_matter_is_brighter_than_grey(brain):
    root, _ = brain
    stem = min(p.name for p in (root / "test" / "images").iterdir())
    image = np.array(Image.open(root / "test" / "images" / stem)).astype(float)
    ids = np.array(Image.open(root / "test" / "masks" / stem))
    assert image[ids == 2].mean() > image[ids == 1].mean() + 20


def test_held_out_slices_have_no_training_neighbour(brain):
    root, _ = brain
    slices = {
        split: [int(re.findall(r"\d+", p.stem)[0]) for p in (root / split / "images").iterdir()]
        for split in ("train", "val", "test")
    }
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        assert min(abs(x - y) for x in slices[a] for y in slices[b]) >= 3


def test_a_folder_with_content_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(DataError, match=r"is not empty\. Give a new folder"):
        write_brain_sample(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sample, "save_mask", full)
    with pytest.raises(WriteError, match=r"brain cannot be written: No space left on device\. .* make room"):
        write_brain_sample(tmp_path / "brain")
    assert not any(tmp_path.iterdir())


def test_without_nilearn(tmp_path, monkeypatch):
    real = builtins.__import__

    def fake(name, *args, **kwargs):
        if name == "nilearn":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(MissingExtraError, match=r"(?s)'nilearn'.*pip install 'convlora\[sample\]'"):
        write_brain_sample(tmp_path / "new")
