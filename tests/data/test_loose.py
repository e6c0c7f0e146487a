"""Public data as it is delivered, not yet in folders: what to do is told, in commands that work."""

import shlex
import shutil
import subprocess
import sys

import pytest

from convlora.data.check import check_dataset
from convlora.data.convert import convert_dataset
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


def in_folders(data, images, masks):
    """Three patients with two images each, of the same names."""
    root = data.with_name("patients")
    for i in range(6):
        for kind, name in (("images", images), ("masks", masks)):
            place = root / f"patient{i // 2}" / name
            place.mkdir(parents=True, exist_ok=True)
            (data / "train" / kind / f"train_{i:02}.png").rename(place / f"{i % 2}.png")
    return root


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("img", "labels")])
def test_folders_of_patients(data, images, masks):
    root = in_folders(data, images, masks)
    said = told(root)
    assert f"3 folders, such as patient0, hold {images} and {masks} of their own." in said
    write_the_table(said)
    assert said.partition(" writes ")[2].startswith(f"{root / 'data.csv'}; give that as DATA.")
    table = root / "data.csv"
    report = check_dataset(table)
    assert sum(report.statistics["images"].values()) == 6
    assert "unused-folder" not in {problem.code for problem in report.problems}  # the table names its images
    pattern = said.partition("--group-by '")[2].partition("' convert keeps")[0]
    assert convert_dataset(table, data / "new", group_by=pattern).counts == {"train": 2, "val": 2, "test": 2}
    table.unlink()
    for kind in (images, masks):
        shutil.rmtree(root / "patient0" / kind)
        (root / "patient0" / kind).mkdir()
    assert "2 folders, such as patient1," in told(root)


def test_folders_of_which_each_is_another(data):
    root = in_folders(data, "images", "masks")
    (root / "patient0" / "masks").rename(root / "patient0" / "gt")
    assert "of their own" not in told(root)


def test_the_folders_of_nnunet(data):
    for kind, name, end in (("images", "imagesTr", "_0000"), ("masks", "labelsTr", "")):
        (data / "train" / kind).rename(data / "train" / name)
        for file in (data / "train" / name).iterdir():
            file.rename(file.with_name(f"{file.stem}{end}.png"))
    root = data / "train"
    write_the_table(told(root))
    assert sum(check_dataset(root).statistics["images"].values()) == 6
    (root / "data.csv").unlink()
    (root / "imagesTr" / "a_0000.nii.gz").write_bytes(b"x")
    assert "layout of nnU-Net. Its volumes are not read: save their slices as PNG" in told(root)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.nii.gz", b"x", "a NIfTI volume"),
        ("A.NII", b"x", "a NIfTI volume"),
        ("a.dcm", b"x", "a DICOM file"),
        ("IM0001", bytes(128) + b"DICM\2\0", "a DICOM file"),
    ],
)
def test_medical_volumes(data, tmp_path, name, content, kind):
    (data / "train" / "images" / name).write_bytes(content)
    (problem,) = [p for p in check_dataset(data).errors if p.code == "unread-format"]
    assert problem.found == f"is {kind}, which is not read"
    assert "Save its slices as PNG, and of labels the class ids (docs/rearrange.md" in problem.fix
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / name).write_bytes(content)
    assert f"{name} is {kind}, which is not read: save its slices as PNG" in told(tmp_path / "loose")


def test_other_files_are_no_volumes(data):
    (data / "train" / "images" / "notes").write_bytes(bytes(140))
    assert [p.code for p in check_dataset(data).problems] == ["stray-file"]


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
