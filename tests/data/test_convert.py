"""convert: every form of data ends in the plain layout with the same labels, and nothing is overwritten."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convlora.cli import main
from convlora.data.check import check_dataset
from convlora.data.convert import convert_dataset
from convlora.data.images import read_pixels
from convlora.data.labels import read_label
from convlora.errors import ConfigError, DataError, WriteError
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
    with pytest.raises(WriteError, match=r"new cannot be written: .* Nothing of it is left\. Make room"):
        convert_dataset(data, data / "data.csv" / "new")


@pytest.mark.parametrize("there", [False, True])
def test_a_conversion_that_is_stopped_leaves_nothing(tmp_path, monkeypatch, there):
    """What was written would be a smaller data set, in which `check` finds no fault."""
    data, out = write_table(tmp_path / "data"), tmp_path / "new"
    if there:
        out.mkdir()

    def stopped(source, target):
        if source.name.startswith("val"):
            raise KeyboardInterrupt
        return copy(source, target)

    copy = shutil.copyfile
    monkeypatch.setattr(shutil, "copyfile", stopped)
    with pytest.raises(KeyboardInterrupt):
        convert_dataset(data, out)
    assert out.exists() == there
    assert not there or list(out.iterdir()) == []


def test_a_conversion_that_was_killed_is_made_anew(tmp_path, monkeypatch):
    data = write_table(tmp_path / "data")
    (tmp_path / "new" / ".part-by-convlora" / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "new")
    assert convert_dataset(data, Path()).counts["train"] == 3
    assert {path.name for path in Path().iterdir()} == {"train", "val", "test", "classes.txt"}


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


def test_warnings_of_one_kind_are_gathered(tmp_path, command):
    data = write_table(tmp_path / "data")
    for path in sorted((data / "truth").iterdir())[:5]:
        Image.fromarray(np.zeros((20, 30), np.uint8)).save(path)
    said = command("convert", data, "--out", tmp_path / "new")[2]
    told = [line for line in said.splitlines() if "[empty-masks]" in line]
    assert len(told) == 1
    assert told[0].endswith("(4 more like it: convlora check shows all)")
    for name in ("test0", "test1", "test2"):
        Image.fromarray(np.eye(20, 30, dtype=np.uint8)).save(data / "truth" / f"{name}_mask.png")
    written = convert_dataset(data, tmp_path / "few")
    assert ["more like it" in line for line in written.warnings if "[empty-masks]" in line] == [False, False]


def scenes(root, kind=np.uint8):
    """Two scenes for training, 70 x 100 and 40 x 40, and one of each for val; the left third has no data."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            (root / split / folder).mkdir(parents=True)
        for name, size in (("large", (70, 100)), ("small", (40, 40))):
            pixels = rng.integers(
                0, np.iinfo(kind).max, (*size, 3)[: 3 if kind is np.uint8 else 2], dtype=kind
            )
            ids = rng.integers(0, 3, size, dtype=np.uint8)
            pixels[:, : size[1] // 3], ids[:, :30] = 7, 255
            Image.fromarray(pixels).save(root / split / "images" / f"{name}.tif")
            Image.fromarray(ids).save(root / split / "masks" / f"{name}.png")
    (root / "classes.txt").write_text("soil\nwheat\nmaize\n", encoding="utf-8")
    return root


def test_large_images_are_cut_into_tiles_of_their_split(tmp_path):
    data = scenes(tmp_path / "data")
    before = check_dataset(data, splits=()).dataset
    written = convert_dataset(data, tmp_path / "new", tile=48)
    report = check_dataset(tmp_path / "new", splits=())
    after = report.dataset
    starts = [(top, left) for top in (0, 22) for left in (0, 26, 52)]
    assert written.counts == {"train": 7, "val": 7}
    assert written.left_out == 0
    for split, pairs in before.splits.items():
        large, small = pairs
        tiles = {pair.stem: pair for pair in after.splits[split]}
        assert set(tiles) == {"small", *(f"large_{top:05}_{left:05}" for top, left in starts)}
        assert tiles["small"].image.read_bytes() == small.image.read_bytes()
        pixels, ids = read_pixels(large.image), read_label(large.mask, before.encoding)
        for top, left in starts:
            tile, place = tiles[f"large_{top:05}_{left:05}"], np.s_[top : top + 48, left : left + 48]
            np.testing.assert_array_equal(read_pixels(tile.image), pixels[place])
            np.testing.assert_array_equal(read_label(tile.mask, after.encoding), ids[place])


def test_a_tile_takes_no_other_images_place(tmp_path):
    data = scenes(tmp_path / "data")
    for folder, ending in (("images", "tif"), ("masks", "png")):
        place = data / "train" / folder
        (place / f"small.{ending}").rename(place / f"large_00022_00052.{ending}")
    with pytest.raises(DataError, match=r"tif and another image would both be large_00022_00052\. Rename"):
        convert_dataset(data, tmp_path / "new", tile=48)


def test_tiles_without_data_are_left_out(tmp_path):
    data = scenes(tmp_path / "data")
    written = convert_dataset(data, tmp_path / "new", tile=32)
    names = sorted(path.stem for path in (tmp_path / "new" / "train" / "masks").iterdir())
    assert all(int(name.split("_")[2]) >= 22 for name in names if name.startswith("large"))
    assert names[0] == "large_00000_00022"
    assert written.counts["train"] == len(names) == 9 + 4
    assert written.left_out == 2 * 3  # of one colour; those of the first column


def test_tiles_of_deep_grey_are_parts_of_what_predict_sees(tmp_path):
    """Stretched over the scene: each tile by itself would be brighter or darker than in the scene."""
    data = scenes(tmp_path / "data", np.uint16)
    convert_dataset(data, tmp_path / "new", tile=48)
    scene = read_pixels(data / "val" / "images" / "large.tif")
    file = tmp_path / "new" / "val" / "images" / "large_00022_00052.png"
    with Image.open(file) as image:
        assert image.mode == "L"
    np.testing.assert_allclose(read_pixels(file) / 255, scene[22:70, 52:100], rtol=0, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize("tile", [31, True, 64.0, "64"])
def test_sides_that_no_tile_can_have(tmp_path, tile):
    with pytest.raises(ConfigError, match=r"tile is .*; it must be a whole number of pixels, 32 or more"):
        convert_dataset(scenes(tmp_path / "data"), tmp_path / "new", tile=tile)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("seed", [-1, 0.5, "0", None])
def test_seeds_that_no_split_can_have(tmp_path, seed):
    with pytest.raises(ConfigError, match=r"seed is .*; it must be a whole number, 0 or more"):
        convert_dataset(scenes(tmp_path / "data"), tmp_path / "new", split_seed=seed)


def patients(root, sizes):
    """Slices of patients, without splits: `images/p0-s00.png`, ..."""
    for patient, count in enumerate(sizes):
        for i in range(count):
            name = f"p{patient}-s{i:02}.png"
            write_image(root / "images" / name, seed=100 * patient + i)
            mask = np.full(np.array(Image.open(root / "images" / name)).shape[:2], i % 2, np.uint8)
            (root / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / name)
    return root


def who(out):
    """Split -> patients, and how many images."""
    names = {
        split: [p.name for p in (out / split / "images").iterdir()] for split in ("train", "val", "test")
    }
    return {split: {name[:2] for name in found} for split, found in names.items()}, {
        split: len(found) for split, found in names.items()
    }


def test_images_of_one_patient_stay_together(tmp_path):
    data = patients(tmp_path / "data", [4] * 10)
    seen = []
    for seed in (0, 1):
        written = convert_dataset(data, tmp_path / f"{seed}", split_seed=seed, group_by=r"p\d+")
        found, counts = who(tmp_path / f"{seed}")
        assert counts == written.counts == {"train": 28, "val": 8, "test": 4}  # 28, 6 and 6 are asked for
        assert sorted(p for there in found.values() for p in there) == [f"p{i}" for i in range(10)]
        seen.append(found)
    assert seen[0] != seen[1]
    convert_dataset(data, tmp_path / "brackets", group_by=r"images/(?:p(\d)|q)-")
    assert who(tmp_path / "brackets")[0] == seen[0]
    convert_dataset(data, tmp_path / "single")
    assert sum(map(len, who(tmp_path / "single")[0].values())) > 10  # what it is for


def test_one_large_group_among_small_ones(tmp_path):
    """In the first random order the 30 images of one patient may come last, and train gets 5."""
    data = patients(tmp_path / "data", [30, *[1] * 6])
    for seed in range(6):
        written = convert_dataset(data, tmp_path / f"{seed}", split_seed=seed, group_by=r"p\d")
        assert written.counts == {"train": 30, "val": 3, "test": 3}
    again = convert_dataset(data, tmp_path / "again", split_seed=5, group_by=r"p\d")
    assert again.notes == written.notes
    assert who(tmp_path / "again") == who(tmp_path / "5")


@pytest.mark.parametrize("sizes", [[20, 1, 1], [1, 1, 20], [3, 3, 3], [1, 9, 1, 9]])
def test_few_groups_fill_every_split(tmp_path, sizes):
    convert_dataset(patients(tmp_path / "data", sizes), tmp_path / "new", group_by=r"p\d")
    assert all(who(tmp_path / "new")[0].values())


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("p(", ConfigError, r"group_by is 'p\(', which is no regular expression: missing \)"),
        (5, ConfigError, "group_by is 5, which is no regular expression"),
        (b"p", ConfigError, "group_by is b'p', which is no regular expression: it is no text"),
        ("s00", ConfigError, r"'s00', of which nothing is in the name images/p0-s01.png. It must fit every"),
        ("images", DataError, "The groups of the 6 images are images; at least 3 are needed"),
    ],
)
def test_groups_that_cannot_be_made(tmp_path, pattern, error, message):
    with pytest.raises(error, match=message):
        convert_dataset(patients(tmp_path / "data", [2, 2, 2]), tmp_path / "new", group_by=pattern)
    assert not (tmp_path / "new").exists()


def test_splits_that_are_there_are_not_made_anew(tmp_path):
    with pytest.raises(ConfigError, match=r"group_by is 'a', but .* has splits, which stay. Leave it out"):
        convert_dataset(scenes(tmp_path / "data"), tmp_path / "new", group_by="a")


def test_command_with_groups(tmp_path, command):
    data = patients(tmp_path / "data", [4] * 10)
    code, text, _ = command("convert", data, "--out", tmp_path / "new", "--group-by", r"p\d")
    assert (code, "Wrote 28 train, 8 val, 4 test images" in text) == (0, True)
    (told,) = [line for line in text.splitlines() if line.startswith("groups: ")]
    found = who(tmp_path / "new")[0]
    assert re.sub(r"\(.*?\)", "", told) == "groups: 7 in train , 2 in val , 1 in test "
    assert all(
        set(re.findall(r"p\d", part)) <= names
        for part, names in zip(told.split("), "), found.values(), strict=True)
    )
    assert ", ...)" in told


def test_command_says_that_a_seed_drew_the_splits(tmp_path, command):
    data = patients(tmp_path / "data", [4] * 3)
    code, text, _ = command("convert", data, "--out", tmp_path / "new", "--seed", 3)
    assert code == 0
    assert "splits: made here by seed 3, image by image: scores are too good if some are" in text
    assert "splits: " not in command("convert", tmp_path / "new", "--out", tmp_path / "newer")[1]


def test_command_with_tiles(tmp_path, command):
    code, text, _ = command("convert", scenes(tmp_path / "data"), "--out", tmp_path / "new", "--tile", "32")
    assert code == 0
    assert "Wrote 13 train, 13 val images with masks of 3 classes" in text
    assert "Left out 6 tiles that have one colour or no label." in text
    assert "Give predict and evaluate --tile 32 for whole images." in text
