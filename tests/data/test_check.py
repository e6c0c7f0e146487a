"""The data doctor: each problem is found, by file, with the fix; and all of them in one run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convlora.data.check import check_dataset
from convlora.data.classes import read_class_names
from convlora.data.labels import MaskFile
from convlora.data.layout import Pair, find_folders, split_pairs
from convlora.data.masks import MaskEncoding
from convlora.errors import DataError
from small import write_shapes


@pytest.fixture
def data(binary_data, tmp_path):
    return shutil.copytree(binary_data, tmp_path / "data")


@pytest.fixture
def three(three_class_data, tmp_path):
    return shutil.copytree(three_class_data, tmp_path / "three")


def codes(report, severity="error"):
    return sorted({p.code for p in report.problems if p.severity == severity})


def mask(path, array, **options):
    Image.fromarray(np.asarray(array)).save(path, **options)


def values_of(path):
    return np.array(Image.open(path))


def test_good_data(data, three):
    report = check_dataset(data, splits=("train", "val", "test"))
    assert report.problems == []
    found = report.dataset
    assert found.classes == ("background", "foreground")
    assert found.encoding is MaskEncoding.IDS
    assert {split: len(pairs) for split, pairs in found.splits.items()} == {"train": 8, "val": 4, "test": 4}
    assert all(p.image.stem == p.mask.stem for pairs in found.splits.values() for p in pairs)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert check_dataset(three).dataset.classes == ("background", "disc", "bar")
    assert json.loads(report.to_json())["ok"] is True
    assert "0 errors" in report.to_text()


def test_fingerprint_tells_data_sets_apart(data):
    before = check_dataset(data).dataset.fingerprint
    assert check_dataset(data).dataset.fingerprint == before
    (data / "train" / "images" / "train_00.png").unlink()
    (data / "train" / "masks" / "train_00.png").unlink()
    assert check_dataset(data).dataset.fingerprint != before


TRAIN = ("train", "images", "train_00.png"), ("train", "masks", "train_00.png")


def _files(data):
    return [data.joinpath(*parts) for parts in TRAIN]


def _missing_mask(data):
    _files(data)[1].unlink()


def _missing_image(data):
    _files(data)[0].unlink()


def _unreadable_image(data):
    (data / "train" / "images" / "train_01.png").write_bytes(b"")


def _unreadable_mask(data):
    file = _files(data)[1]
    file.write_bytes(file.read_bytes()[:60])


def _size_mismatch(data):
    file = data / "train" / "masks" / "train_03.png"
    mask(file, values_of(file)[:-3])


def _unknown_ids(data):
    file = _files(data)[1]
    array = values_of(file)
    array[0, :3] = 7
    mask(file, array)


def _duplicate_stem(data):
    image = _files(data)[0]
    Image.open(image).save(image.with_suffix(".bmp"))


def _case_clash(data):
    for file in _files(data):
        shutil.copy(file, file.with_name("TRAIN_00.png"))


def _same_image(data):
    for kind in ("images", "masks"):
        shutil.copy(data / "train" / kind / "train_05.png", data / "val" / kind / "val_00.png")


def _missing_split(data):
    shutil.rmtree(data / "val")


def _mixed_encoding(data):
    file = _files(data)[1]
    mask(file, values_of(file) * 255)


def _jpeg_mask(data):
    file = _files(data)[1]
    array = values_of(file)
    file.unlink()
    mask(file.with_suffix(".jpg"), array * 255, quality=30)


BREAKS = {
    "missing-mask": _missing_mask,
    "missing-image": _missing_image,
    "unreadable-image": _unreadable_image,
    "unreadable-mask": _unreadable_mask,
    "size-mismatch": _size_mismatch,
    "unknown-ids": _unknown_ids,
    "duplicate-stem": _duplicate_stem,
    "case-clash": _case_clash,
    "same-image": _same_image,
    "missing-split": _missing_split,
    "mixed-encoding": _mixed_encoding,
    "jpeg-mask": _jpeg_mask,
}


ERRORS = {
    "missing-mask": "train_00.png: no mask in train/masks.*Add train_00.png to train/masks",
    "missing-image": "train_00.png: no image in train/images",
    "unreadable-image": r"0 bytes",
    "unreadable-mask": "cannot be read as an image",
    "size-mismatch": "45 x 64, but its image is 48 x 64",
    "unknown-ids": "the masks hold the values 0, 1, 7.*classes.txt",
    "duplicate-stem": "2 files of one name: train_00.bmp, train_00.png.*Keep one",
    "case-clash": "differs only in case",
    "same-image": "the same picture as .*Remove it from one",
    "missing-split": "the split 'val' is missing.*Put image and mask pairs into val/images",
    "mixed-encoding": "values 0 and 255, while .* has 0 and 1",
    "jpeg-mask": "JPEG with .* different values.*Save masks as PNG",
}


@pytest.mark.parametrize("what", ERRORS)
def test_each_error_is_named_with_its_fix(data, what):
    BREAKS[what](data)
    report = check_dataset(data)
    assert what in codes(report)
    assert not report.ok
    with pytest.raises(DataError, match=rf"(?s)The data has \d+ errors?:.*{ERRORS[what]}"):
        _ = report.dataset


def test_all_problems_in_one_run(data):
    together = {"missing-mask", "unreadable-image", "same-image", "size-mismatch"}
    for what in together:
        BREAKS[what](data)
    assert set(codes(check_dataset(data))) == together


def test_turned_photograph(data):
    """An EXIF-rotated image whose mask is not turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = data / "train" / "images" / "train_00.png"
    Image.open(path).save(path, exif=exif)
    with pytest.raises(DataError, match="One is turned: apply the photograph's EXIF orientation"):
        check_dataset(data).raise_if_errors()


def test_ids_outside_named_classes(three):
    path = three / "train" / "masks" / "train_01.png"
    array = values_of(path)
    array[0, :5] = 9
    mask(path, array)
    with pytest.raises(
        DataError, match=r"ids 9 \(5 pixels\). The classes are 0 to 2 \(background, disc, bar\)"
    ):
        check_dataset(three).raise_if_errors()


def test_two_named_classes_but_more_values(data):
    (data / "classes.txt").write_text("sea\nland\n")
    _unknown_ids(data)
    with pytest.raises(DataError, match=r"There are two classes \(sea, land\)"):
        check_dataset(data).raise_if_errors()


@pytest.mark.parametrize("values", [(0, 255), (0, 1), (0, 1, 255)])
def test_binary_encodings(tmp_path, values):
    write_shapes(tmp_path, 2, {"train": 2, "val": 1})
    for path in tmp_path.rglob("masks/*.png"):
        array = values_of(path) * (255 if values == (0, 255) else 1)
        if len(values) == 3:
            array[-1] = 255
        mask(path, array)
    found = check_dataset(tmp_path).dataset
    assert found.encoding is (MaskEncoding.BINARY_255 if values == (0, 255) else MaskEncoding.IDS)
    assert 0 < found.shares["foreground"] < 0.5


def test_warnings(data, three):
    (data / "train" / "images" / "notes.txt").write_text("x")
    path = data / "train" / "masks" / "train_00.png"
    mask(path, np.zeros_like(values_of(path)))
    report = check_dataset(data)
    assert report.ok
    assert codes(report, "warning") == ["empty-masks", "stray-file"]
    path = three / "val" / "masks" / "val_01.png"
    mask(path, np.full_like(values_of(path), 255))
    for path in (three / "train" / "masks").iterdir():
        array = values_of(path)
        mask(path, np.where(array == 2, 0, array).astype(np.uint8))
    report = check_dataset(three)
    assert codes(report, "warning") == ["all-ignored", "class-without-pixels"]
    assert "bar" in report.to_text()


def test_folder_without_splits(binary_data, tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
        for path in binary_data.rglob(f"{kind}/*.png"):
            shutil.copy(path, tmp_path / kind)
    found = check_dataset(tmp_path).dataset
    again = check_dataset(tmp_path).dataset
    other = check_dataset(tmp_path, split_seed=1).dataset
    assert found.splits == again.splits
    assert found.splits != other.splits
    stems = [pair.stem for pairs in found.splits.values() for pair in pairs]
    assert len(stems) == len(set(stems)) == 16
    assert {split: len(pairs) for split, pairs in found.splits.items()} == {"train": 12, "val": 2, "test": 2}


def test_the_split_of_a_seed_stays():
    """Recorded scores are of these images."""
    pairs = [Pair(f"{i}", Path(f"{i}.png"), MaskFile(Path(f"{i}.png"))) for i in range(20)]
    found = {
        seed: {split: [int(pair.stem) for pair in there] for split, there in split_pairs(pairs, seed).items()}
        for seed in (0, 3)
    }
    assert {seed: (splits["val"], splits["test"]) for seed, splits in found.items()} == {
        0: ([4, 6, 19], [2, 13, 16]),
        3: ([12, 16, 18], [3, 8, 13]),
    }


def test_too_few_to_split():
    with pytest.raises(DataError, match=r"There are 0 pairs .* at least 3 are needed"):
        split_pairs([], 0)


def test_other_names_of_splits(tmp_path):
    write_shapes(tmp_path, 2, {"training": 2, "valid": 1})
    assert [folder.split for folder in find_folders(tmp_path)] == ["train", "val"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "holds nothing. A data folder holds"),
        (lambda root: (root / "train" / "images").mkdir(parents=True), "has no folder 'masks'"),
        (lambda root: (root / "pictures").mkdir(), "holds pictures. A data folder holds"),
    ],
)
def test_other_layouts(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        check_dataset(tmp_path).raise_if_errors()


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="is not a folder that exists"):
        check_dataset(tmp_path / "no").raise_if_errors()


@pytest.mark.parametrize(
    ("file", "text", "names"),
    [
        ("classes.txt", "a\nb\n\n", ("a", "b")),
        ("data.yaml", "names: [a, b, c]", ("a", "b", "c")),
        ("data.yml", "names: {0: a, 1: b}", ("a", "b")),
    ],
)
def test_class_names(tmp_path, file, text, names):
    (tmp_path / file).write_text(text)
    assert read_class_names(tmp_path) == names


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("classes.txt", "a\na\n", "names the class 'a' more than once"),
        ("classes.txt", "a\n", "names 1 classes; there must be 2 to 255"),
        ("data.yaml", "names: {1: a, 2: b}", "must hold 'names': a list, or ids 0, 1, 2"),
        ("data.yaml", "path: x", "must hold 'names'"),
        ("data.yaml", "names: [", "is not valid YAML"),
    ],
)
def test_bad_class_names(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=message):
        read_class_names(tmp_path)


def test_no_class_names(tmp_path):
    assert read_class_names(tmp_path) is None


def with_areas(root, split, rows, white=1):
    """A split whose masks have so many of their 40 rows in the foreground."""
    for folder in ("images", "masks"):
        shutil.rmtree(root / split / folder)
        (root / split / folder).mkdir()
    for i, n in enumerate(rows):
        noise = np.random.default_rng([*split.encode(), i]).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        mask(root / split / "images" / f"{split}_{i:02d}.png", noise)
        mask(
            root / split / "masks" / f"{split}_{i:02d}.png",
            white * np.uint8(np.arange(40) < n)[:, None].repeat(40, 1),
        )


@pytest.mark.parametrize("white", [1, 255])
def test_few_masks_with_much_foreground_are_told(data, white):
    for split in ("train", "val", "test"):
        with_areas(data, split, [1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3], white)
    assert check_dataset(data).problems == []
    with_areas(data, "val", [1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 30], white)
    report = check_dataset(data)
    (problem,) = report.problems
    assert (problem.severity, problem.code) == ("warning", "much-foreground")
    assert problem.file.endswith("val_10.png")
    assert problem.found == (
        "foreground is 75 % of this mask and 5 % of the median one; such masks, 1 of 11 in val, hold 58 % of "
        "all foreground"
    )
    assert "filled by mistake" in problem.rule
    assert "image_mean_dice_foreground" in problem.fix
    assert check_dataset(data, splits=("test",), scored="test").problems == []
    assert len(check_dataset(data, splits=("val",), scored="val").problems) == 1


@pytest.mark.parametrize(
    "rows",
    [
        [2] * 8 + [30],  # too few to tell
        [2] * 10 + [19],  # less than ten times the median
        [2] * 70 + [30],  # a small part of the foreground
        [1] * 16 + [20] * 2,  # more than a tenth of the masks
        [0] * 12 + [30],  # one alone
    ],
)
def test_much_foreground_is_no_fault_by_itself(data, rows):
    with_areas(data, "val", rows)
    report = check_dataset(data)
    assert report.ok
    assert "much-foreground" not in codes(report, "warning")
