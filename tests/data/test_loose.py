"""Public data as it is delivered, not yet in folders: what to do is told, in commands that work."""

import shlex
import subprocess
import sys

import pytest

from convlora.data.check import check_dataset
from small import write_shapes


@pytest.fixture
def data(tmp_path):
    return write_shapes(tmp_path / "data", 2, {"train": 6, "val": 2})


def told(root):
    report = check_dataset(root)
    assert not report.ok
    return " ".join(f"{p.found} {p.fix}" for p in report.errors)


def write_the_table(said):
    command = said.partition(": python ")[2].partition(" writes ")[0]
    subprocess.run(f"{shlex.quote(sys.executable)} {command}", shell=True, check=True)


@pytest.mark.parametrize("ends", [("_sat", "_mask"), ("", "_mask"), ("_image", "_gt")])
def test_images_and_masks_in_one_folder(data, ends):
    """As DeepGlobe's roads; the command of the message writes the table."""
    root = data / "train"
    for kind, end in zip(("images", "masks"), ends, strict=True):
        for file in (root / kind).iterdir():
            file.rename(root / f"{file.stem}{end}.png")
        (root / kind).rmdir()
    said = told(root)
    assert f"one folder, such as train_00{ends[0]}.png and train_00{ends[1]}.png" in said
    write_the_table(said)
    report = check_dataset(root)
    assert report.ok
    assert sum(report.statistics["images"].values()) == 6


def test_the_table_of_names_with_commas_and_of_hidden_files(data):
    """Copies from a Mac have files such as `._1.png`, which are no pictures."""
    root = data / "train"
    for kind, end in (("images", "_sat"), ("masks", "_mask")):
        for file in (root / kind).iterdir():
            file.rename(root / f"Smith, J. {file.stem}{end}.png")
            (root / f"._Smith, J. {file.stem}{end}.png").write_bytes(b"\0\5\26\7")
        (root / kind).rmdir()
    write_the_table(told(root))
    report = check_dataset(root)
    assert report.ok
    assert sum(report.statistics["images"].values()) == 6


@pytest.mark.parametrize("name", ["$HOME", "a`b", "it's", 'a"b'])
def test_folders_that_a_command_could_not_name(data, name):
    root = (data / "train").rename(data / name)
    for kind, end in (("images", ""), ("masks", "_mask")):
        for file in (root / kind).iterdir():
            file.rename(root / f"{file.stem}{end}.png")
        (root / kind).rmdir()
    assert "Pair them in a table, data.csv." in told(root)


def test_masks_beside_the_images_of_a_split(data):
    """As the Massachusetts roads: train/ and train_labels/."""
    for split in ("train", "val"):
        (data / split / "masks").rename(data / f"{split}_labels")
        (data / split / "images").rename(data / "moved")
        (data / split).rmdir()
        (data / "moved").rename(data / split)
    said = told(data)
    for split in ("train", "val"):
        place = data / split
        beside = f"{place}_labels"
        assert f"move them into {place / 'images'}, and those of {beside} into {place / 'masks'}." in said


def test_loose_images_of_which_nothing_tells_the_masks(data):
    root = data / "train" / "images"
    assert f"move them into {root / 'images'}, and their masks, under the same names, into" in told(root)


@pytest.mark.parametrize("name", ["fields.geojson", "fields.json", "fields.shp"])
def test_polygons_on_a_map(tmp_path, name):
    (tmp_path / "images").mkdir()
    (tmp_path / name).write_text('{"type": "FeatureCollection", "features": []}', encoding="utf-8")
    assert "burn them into masks (docs/rearrange.md" in told(tmp_path / name)
    if not name.endswith(".json"):
        assert f"{name} is a map of shapes" in told(tmp_path)
