"""Data without splits keeps to the splits of the run; training images are never scored as others."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convlora.data.check import check_dataset
from convlora.data.labels import read_label
from convlora.data.splits import check_unseen, limit_training, lost_classes, read_record, record_splits
from convlora.errors import ConfigError, DataError
from small import write_image, write_shapes, write_table


@pytest.fixture
def data(tmp_path):
    return write_table(tmp_path / "data", split=False, count=6)


@pytest.fixture
def record(data, tmp_path):
    """Record of a run on the data."""
    (tmp_path / "run" / "best").mkdir(parents=True)
    (tmp_path / "run" / "split.json").write_text(record_splits(check_dataset(data).dataset))
    return read_record(tmp_path / "run")


def add(data, name):
    write_image(data / "pictures" / f"{name}.png", seed=9)
    shutil.copy(data / "truth" / "train0_mask.png", data / "truth" / f"{name}_mask.png")
    with (data / "data.csv").open("a") as file:
        file.write(f"pictures/{name}.png,truth/{name}_mask.png\n")


def remove(data, *names):
    table = data / "data.csv"
    kept = [line for line in table.read_text().splitlines() if not any(f"/{n}.png" in line for n in names)]
    table.write_text("\n".join(kept) + "\n")


def stems(dataset):
    return {split: [pair.stem for pair in pairs] for split, pairs in dataset.splits.items()}


def warnings(report):
    return [p.code for p in report.warnings]


def test_the_record_is_the_split(data, record):
    report = check_dataset(data, split_seed=5, record=record)
    assert report.problems == []
    assert stems(report.dataset) == {split: list(names) for split, names in record.splits.items()}
    assert stems(report.dataset) != stems(check_dataset(data, split_seed=5).dataset)
    assert not report.dataset.by_seed
    assert read_record(record.file.parent / "best") == record  # an adapter inside the run's folder


def test_new_images_do_not_move_the_others(data, record):
    """A new permutation would put training images into the test split."""
    for i in range(4):
        add(data, f"a_new{i}")
    report = check_dataset(data, record=record)
    assert stems(report.dataset) == {split: list(names) for split, names in record.splits.items()}
    assert warnings(report) == ["new-images"]
    assert "4 images have come since the run" in report.to_text()
    anew = check_dataset(data).dataset
    assert set(stems(anew)["test"]) & set(record.splits["train"])  # so it was worth it


def test_images_that_are_gone(data, record):
    gone = [*record.splits["test"]][:1] + [*record.splits["train"]][:2]
    remove(data, *gone)
    report = check_dataset(data, record=record)
    assert warnings(report) == ["missing-images"]
    assert f"3 of the {18} images of the run are gone" in report.to_text()
    assert stems(report.dataset)["test"] == list(record.splits["test"])[1:]
    remove(data, *record.splits["test"])
    with pytest.raises(DataError, match="the split 'test' is empty"):
        check_dataset(data, splits=("test",), record=record).raise_if_errors()


def test_renamed_images_keep_their_split(data, record):
    name = next(iter(record.splits["train"]))
    (data / "pictures" / f"{name}.png").rename(data / "pictures" / "z.png")
    table = data / "data.csv"
    table.write_text(table.read_text().replace(f"pictures/{name}.png", "pictures/z.png"))
    report = check_dataset(data, record=record)
    assert warnings(report) == []
    assert "z" in stems(report.dataset)["train"]


def test_a_training_image_under_a_name_of_the_test(data, record):
    trained, tested = (next(iter(record.splits[split])) for split in ("train", "test"))
    shutil.copy(data / "pictures" / f"{trained}.png", data / "pictures" / f"{tested}.png")
    remove(data, trained)
    assert tested in stems(check_dataset(data, record=record).dataset)["train"]


def test_changed_images_go_by_their_names(data, record):
    for path in (data / "pictures").iterdir():
        write_image(path, seed=77)
    report = check_dataset(data, record=record)
    assert warnings(report) == ["changed-images"]
    assert stems(report.dataset) == {split: list(names) for split, names in record.splits.items()}


def test_other_data_is_split_by_the_seed(record, tmp_path):
    other = write_table(tmp_path / "other", split=False)
    for path in list((other / "pictures").iterdir()):
        write_image(path.with_name(f"x{path.name}"), seed=3)
        path.unlink()
    table = other / "data.csv"
    table.write_text(table.read_text().replace("pictures/", "pictures/x"))
    report = check_dataset(other, record=record)
    assert warnings(report) == ["other-data"]
    assert report.dataset.by_seed
    assert "move it to test/images and test/masks" in report.to_text()


def test_training_images_in_a_split_to_score(data, record, tmp_path):
    """Data with splits of its own, in which the run's training images are those of the test."""
    found = check_dataset(data).dataset
    rows = ["image,mask,split"]
    for split, pairs in found.splits.items():
        other = {"train": "test", "test": "train"}.get(split, split)
        rows += [f"pictures/{p.image.name},truth/{p.mask.name},{other}" for p in pairs]
    (data / "data.csv").write_text("\n".join(rows))
    moved = check_dataset(data).dataset
    (problem,) = check_unseen(moved, "test", record)
    assert problem.severity == "error"
    assert (
        f"{len(record.splits['train'])} images of the split 'test' are training images of the run"
        in problem.found
    )
    assert list(check_unseen(moved, "val", record)) == []
    assert list(check_unseen(found, "train", record)) == []


def test_records_of_names_only(data, record):
    """As runs before hashes wrote them."""
    old = {split: list(names) for split, names in record.splits.items()}
    record.file.write_text(json.dumps(old))
    report = check_dataset(data, split_seed=5, record=read_record(record.file.parent))
    assert report.problems == []
    assert stems(report.dataset) == old


@pytest.mark.parametrize("text", ["{", "[]", '{"train": 3}', '{"train": {"a": ["b"]}}'])
def test_a_damaged_record(record, text):
    record.file.write_text(text)
    with pytest.raises(DataError, match=r"split.json is damaged"):
        read_record(record.file.parent)


def test_the_record_beside_the_model_s_folder(record, monkeypatch):
    """From inside of it too: the parent of '.' is '.'."""
    best = record.file.parent / "best"
    best.mkdir(exist_ok=True)
    monkeypatch.chdir(best)
    assert read_record(Path()).splits == read_record(best).splits == record.splits


def test_no_record(tmp_path):
    assert read_record(tmp_path / "run") is None


def test_a_part_of_the_training_images(data, tmp_path):
    whole = check_dataset(data).dataset
    small, large = (limit_training(whole, count, seed=3) for count in (2, 3))
    assert len(stems(small)["train"]) == 2
    assert set(stems(small)["train"]) < set(stems(large)["train"]) < set(stems(whole)["train"])
    assert len({tuple(stems(limit_training(whole, 2, seed))["train"]) for seed in range(8)}) > 1
    assert [stems(small)[split] for split in ("val", "test")] == [stems(whole)[s] for s in ("val", "test")]
    assert limit_training(whole, None, 3) is whole
    with pytest.raises(ConfigError, match=r"train_images is 99, but there are \d+ training images"):
        limit_training(whole, 99, 3)


def test_a_class_that_no_kept_image_holds_is_told(tmp_path):
    """Only the last of four training images has the bar."""
    root = write_shapes(tmp_path / "data", 3, {"train": 4, "val": 1})
    for i in range(3):
        file = root / "train" / "masks" / f"train_{i:02d}.png"
        mask = np.asarray(Image.open(file))
        Image.fromarray(np.where(mask == 2, 255, mask)).save(file)
    whole = check_dataset(root).dataset
    told, bars = 0, 0
    for seed in range(8):
        part = limit_training(whole, 2, seed)
        assert sum(part.shares.values()) == pytest.approx(1)
        held = any((read_label(pair.mask, part.encoding) == 2).any() for pair in part.splits["train"])
        assert (part.shares["bar"] > 0) == held
        lost = list(lost_classes(whole, part))
        assert len(lost) == (0 if held else 1)
        if lost:
            assert "none of the 2 training images that are kept, of 4, holds 'bar'" in lost[0]
        told, bars = told + len(lost), bars + held
    assert told
    assert bars
    assert list(lost_classes(whole, limit_training(whole, None, 0))) == []


def test_images_that_a_run_left_out_are_not_new(data, tmp_path):
    part = limit_training(check_dataset(data).dataset, 2, seed=3)
    (tmp_path / "split.json").write_text(record_splits(part))
    record = read_record(tmp_path)
    report = check_dataset(data, record=record)
    assert report.problems == []
    assert stems(limit_training(report.dataset, 2, seed=3)) == stems(part)
    # what was left out was not trained on
    assert not list(check_unseen(report.dataset, "val", record))
