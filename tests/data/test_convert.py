"""convert: every form of data ends in the plain layout with the same labels, and nothing is overwritten."""

import sys

import numpy as np
import pytest
from PIL import Image

from convlora.cli import main
from convlora.data.check import check_dataset
from convlora.data.convert import convert_dataset
from convlora.data.labels import read_label
from convlora.errors import DataError
from small import write_image, write_roboflow, write_shapes, write_table, write_yolo


def colours(root):
    write_shapes(root, 3, {"train": 3, "val": 2})
    table = np.array([(0, 0, 0), (9, 9, 9), (7, 0, 0)], np.uint8)
    for path in root.rglob("masks/*.png"):
        Image.fromarray(table[np.array(Image.open(path))]).save(path)
    (root / "palette.txt").write_text("0 0 0 background\n9 9 9 disc\n7 0 0 bar\n")
    return root


def coloured_table(root):
    write_table(root)
    for path in (root / "truth").iterdir():
        ids = np.array(Image.open(path))
        Image.fromarray(np.stack([ids * 200, ids * 9, ids], axis=-1)).save(path)
    (root / "palette.txt").write_text("0 0 0 background\n200 9 1 cat\n")
    return root


def binary_255(root):
    write_shapes(root, 2, {"train": 3, "val": 2})
    for path in root.rglob("masks/*.png"):
        Image.fromarray(np.array(Image.open(path)) * 255).save(path)
    return root


FORMS = {
    "coco": write_roboflow,
    "yolo": write_yolo,
    "table": write_table,
    "table without splits": lambda root: write_table(root, split=False),
    "palette": colours,
    "palette and table": coloured_table,
    "0 and 255": binary_255,
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_and_images_are_the_same(tmp_path, form):
    data = FORMS[form](tmp_path / "data")
    before = check_dataset(data).dataset
    written = convert_dataset(data, tmp_path / "new")
    report = check_dataset(tmp_path / "new")
    assert [p.code for p in report.problems if p.severity == "error"] == []
    after = report.dataset
    assert after.classes == before.classes == written.classes
    assert written.counts == {split: len(pairs) for split, pairs in after.splits.items()}
    assert not after.by_seed
    found = 0
    for split, pairs in before.splits.items():
        for old, new in zip(pairs, after.splits[split], strict=True):
            assert old.image.read_bytes() == new.image.read_bytes()
            assert old.stem == new.stem == new.mask.stem
            ids = read_label(new.mask, after.encoding)
            np.testing.assert_array_equal(ids, read_label(old.mask, before.encoding))
            found += ids.any()
    assert found >= 5
    assert after.shares == before.shares


def test_images_of_one_name_in_two_folders(tmp_path):
    data = write_table(tmp_path / "data")
    write_image(data / "more" / "train0.png", seed=4)
    (data / "truth" / "other.png").write_bytes((data / "truth" / "train0_mask.png").read_bytes())
    with (data / "data.csv").open("a") as file:
        file.write("more/train0.png,truth/other.png,train\n")
    convert_dataset(data, tmp_path / "new")
    names = {path.name for path in (tmp_path / "new" / "train" / "images").iterdir()}
    assert names == {"more__train0.png", "pictures__train0.png", "train1.png", "train2.png"}
    assert names == {path.name for path in (tmp_path / "new" / "train" / "masks").iterdir()}


def test_names_that_differ_in_case_only(tmp_path, monkeypatch):
    from convlora.data import convert
    from convlora.data.labels import MaskFile
    from convlora.data.layout import Pair

    pairs = [Pair(stem, tmp_path / f"{stem}.png", MaskFile(tmp_path / "m.png")) for stem in ("Dog", "dog")]
    with pytest.raises(DataError, match=r"Dog.png and .*dog.png would both be train/images/dog. Rename one"):
        convert._check_names(pairs, "train")


def test_a_folder_with_content_is_left_alone(tmp_path):
    data = write_table(tmp_path / "data")
    for out in (data, data / "data.csv"):
        with pytest.raises(DataError, match=r"is not empty\. Give a new folder"):
            convert_dataset(data, out)
    assert not (data / "train").exists()


def test_a_place_that_cannot_be_written(tmp_path):
    data = write_table(tmp_path / "data")
    with pytest.raises(
        DataError, match=r"new cannot be written: .* What is there is not complete: delete it"
    ):
        convert_dataset(data, data / "data.csv" / "new")


def test_nothing_is_written_of_bad_data(tmp_path):
    data = write_table(tmp_path / "data")
    (data / "truth" / "val1_mask.png").unlink()
    with pytest.raises(DataError, match="missing-file"):
        convert_dataset(data, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_command(tmp_path, monkeypatch, capsys):
    data, out = write_yolo(tmp_path / "data"), tmp_path / "new"
    (data / "train" / "labels" / "train2.txt").unlink()
    monkeypatch.setattr(sys, "argv", ["convlora", "convert", str(data), "--out", str(out)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    said = capsys.readouterr()
    assert f"Wrote 3 train, 3 val, 3 test images with masks of 3 classes to {out}." in said.out
    assert f"Next: convlora train {out} --out RUN" in said.out
    assert "warning: [missing-labels]" in said.err
    assert (out / "classes.txt").read_text() == "background\ncat\ndog\n"
