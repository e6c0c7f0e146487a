"""Tables: what is read, and every mistake by its line."""

from pathlib import Path

import numpy as np
import pytest

from convlora.data.check import check_dataset
from convlora.data.labels import read_label
from convlora.data.layout import unique_stems
from convlora.errors import DataError
from small import write_image, write_table


@pytest.fixture
def data(tmp_path):
    return write_table(tmp_path / "data")


def table(root):
    return root / "data.csv"


def edit(root, change):
    table(root).write_text(change(table(root).read_text()))


def test_splits_of_the_table(data):
    report = check_dataset(data, splits=("train", "val", "test"))
    assert report.problems == []
    found = report.dataset
    assert report.statistics["layout"] == "table data.csv, with a column split"
    assert [pair.stem for pair in found.splits["val"]] == ["val0", "val1", "val2"]
    pair = found.splits["train"][1]
    assert (pair.image.name, pair.mask.name) == ("train1.png", "train1_mask.png")
    assert np.flatnonzero(read_label(pair.mask, found.encoding).any(axis=0)).tolist() == list(range(3, 11))
    assert check_dataset(table(data)).dataset.fingerprint == found.fingerprint


def test_without_splits(tmp_path):
    root = write_table(tmp_path, split=False)
    report = check_dataset(root)
    assert report.statistics["layout"] == "table data.csv, without splits"
    assert report.statistics["images"] == {"train": 7, "val": 1, "test": 1}
    assert report.dataset.by_seed
    assert check_dataset(root).dataset.splits == report.dataset.splits
    assert check_dataset(root, split_seed=1).dataset.splits != report.dataset.splits


def noted(text, lines):
    """The table with a column of notes, in these lines `"5 inch`."""
    return "\n".join(
        line + (',"5 inch' if number in lines else ",note")
        for number, line in enumerate(text.splitlines(), 1)
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace(",", ";"),
        lambda text: text.replace(",", "\t"),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("image,mask,split", " Image, Mask , SPLIT"),
        lambda text: text.replace("train\n", "training\n").replace("val\n", "Valid\n"),
        lambda text: text.replace("pictures/train0.png", '"pictures/train0.png"').replace("\n", "\n\n"),
        lambda text: "\n".join(f"{line},note" for line in text.splitlines()),
        lambda text: "\n".join(f'{line},"5"" and\ntwo lines",5" bare' for line in text.splitlines()),
    ],
)
def test_forms_that_programs_write(data, change):
    before = check_dataset(data).dataset
    table(data).write_bytes(change(table(data).read_text()).encode())
    report = check_dataset(data)
    assert report.problems == []
    assert report.dataset.fingerprint == before.fingerprint


def test_paths_outside_of_the_folder(data, tmp_path):
    (tmp_path / "lists").mkdir()
    text = table(data).read_text().replace("pictures/", "../data/pictures/")
    (tmp_path / "lists" / "mine.csv").write_text(text.replace("truth/", f"{data}/truth/"))
    found = check_dataset(tmp_path / "lists" / "mine.csv").dataset
    assert len(found.splits["train"]) == 3
    assert found.fingerprint == check_dataset(data).dataset.fingerprint


def test_fingerprint_follows_the_labels(data):
    before = check_dataset(data).dataset.fingerprint
    edit(
        data,
        lambda t: (
            t.replace("train0_mask", "X").replace("train1_mask", "train0_mask").replace("X", "train1_mask")
        ),
    )
    assert check_dataset(data).dataset.fingerprint != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.replace("image,mask,", "image,masks,"),
            r"no column 'mask'; its first line holds 'image', 'masks', 'split'\. Did you mean 'masks'",
        ),
        (
            lambda t: t.replace("image,mask,", "a,mask,"),
            r"no column 'image'; its first line holds 'a', 'mask', 'split'\. A table",
        ),
        (lambda t: t.replace("mask,split", "mask,splits"), "has a column 'splits'. Did you mean 'split'"),
        (lambda t: t.replace("mask,split", "mask,mask"), "has the column 'mask' twice"),
        (
            lambda t: t.replace("mask,split", "mask,fold"),
            r"a column 'fold' that holds names of splits \(train, val, test\), and no column 'split'\. "
            r"Rename it 'split'; or remove it",
        ),
        (
            lambda t: t.replace("mask,split", "mask,phase").replace(",val\n", ",Dev\n").replace(",test", ","),
            r"a column 'phase' that holds names of splits \(train, Dev\)",
        ),
        (lambda t: "", "is empty. A table has the columns image, mask"),
        (lambda t: "image,mask\n", "has no row below its header"),
        (lambda t: "image,mask\n" + "a" * 140_000, "line 2 is not valid CSV: field larger"),
        # a quote that is not closed swallows rows: to the end, or to the next such quote
        (
            lambda t: noted(t, {4}),
            r"line \d+ is not valid CSV: unexpected end of data. The row begins at line 4 or below. A cell",
        ),
        (lambda t: noted(t, {4, 7}), r"line 7 is not valid CSV: ',' expected .* begins at line 4 or below"),
    ],
)
def test_tables_that_cannot_be_read(data, change, message):
    edit(data, change)
    with pytest.raises(DataError, match=message):
        check_dataset(data).raise_if_errors()


def test_another_encoding(data):
    table(data).write_bytes(table(data).read_text().encode() + "pictures/bär.png".encode("latin-1"))
    with pytest.raises(DataError, match=r"data.csv, line 11 is not UTF-8 text: .* Save the table as UTF-8"):
        check_dataset(data).raise_if_errors()


@pytest.mark.parametrize(
    ("row", "code", "message"),
    [
        ("pictures/lost.png,truth/val0_mask.png,val", "missing-file", "the image .*lost.png does not exist"),
        ("pictures/new.png,truth/lost.png,val", "missing-file", "the mask .*lost.png does not exist"),
        ("pictures/new.png,,val", "empty-cell", "the cell 'mask' is empty"),
        ("pictures/new.png", "empty-cell", "the cell 'mask' is empty"),
        ("pictures/new.png,truth/new.png,", "empty-cell", "the cell 'split' is empty"),
        (
            "pictures/new.png,truth/new.png,hold",
            "unknown-split",
            "the split is 'hold'. A split is one of train, val, test",
        ),
        (
            "pictures/train0.png,truth/new.png,train",
            "repeated-image",
            "the image train0.png was in line 2 already",
        ),
        (
            "pictures/train0.png,truth/train0_mask.png,train",
            "repeated-image",
            "train0.png was in line 2 already",
        ),
        (
            "pictures/new.png,truth/train1_mask.png,train",
            "repeated-mask",
            "train1_mask.png was in line 3 already",
        ),
        ("truth/../pictures/train0.png,truth/new.png,train", "repeated-image", "was in line 2 already"),
        ("a, b.png,truth/new.png,train", "bad-row", "4 cells, but 3 columns.* between quotes"),
    ],
)
def test_bad_rows_are_named_by_line(data, row, code, message):
    write_image(data / "pictures" / "new.png")
    (data / "truth" / "new.png").write_bytes((data / "truth" / "train0_mask.png").read_bytes())
    edit(data, lambda text: text + row + "\n")
    with pytest.raises(DataError, match=rf"(?s)has 1 error:.*\[{code}\] .*data.csv, line 11: .*{message}"):
        check_dataset(data).raise_if_errors()


def test_all_bad_rows_in_one_run(data):
    edit(data, lambda text: text.replace(",val", ",hold"))
    report = check_dataset(data)
    assert [p.file.rsplit(", ")[1] for p in report.errors if p.code == "unknown-split"] == [
        "line 5",
        "line 6",
        "line 7",
    ]


def test_one_name_in_two_folders(data):
    for path in ("pictures/train0.png", "truth/train0_mask.png"):
        (data / "b" / path).parent.mkdir(parents=True)
        (data / "b" / path).write_bytes((data / path).read_bytes())
    write_image(data / "b" / "pictures" / "train0.png", seed=1)
    edit(data, lambda text: text + "b/pictures/train0.png,b/truth/train0_mask.png,train\n")
    found = check_dataset(data).dataset
    assert [pair.stem for pair in found.splits["train"]] == [
        "b__pictures__train0",
        "pictures__train0",
        "train1",
        "train2",
    ]


def test_unique_stems():
    def named(*paths):
        return unique_stems([Path(path) for path in paths])

    assert named("a/1.png", "b/2.png") == ["1", "2"]
    assert named("a/1.png", "b/1.png", "b/2.png") == ["a__1", "b__1", "2"]
    assert named("x/a/1.png", "y/a/1.png") == ["x__a__1", "y__a__1"]
    assert named("1.png", "1.jpg") == ["1_png", "1_jpg"]
    assert named("a/Dog.png", "b/dog.png") == ["a__Dog", "b__dog"]
    assert named("/d/a/1.png", "../b/1.png") == ["a__1", "b__1"]
    assert named("a/1.png", "b/1.png", "c/a__1.png") == ["a__1", "b__1", "c__a__1"]
    with pytest.raises(DataError, match=r"a/1.png and another image would both be called a__1_png. Rename"):
        named("a/1.png", "a/1.png")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("mask,split", "mask,hospital").replace(",val\n", ",north\n"),
        lambda text: text.replace("mask,split", "mask,site").replace(",val\n", ",north\n"),
        lambda text: text.replace("mask,split", "mask,set").replace(",train", ",").replace(",val", ",")
        .replace(",test", ","),
    ],
)  # fmt: skip
def test_other_columns_are_no_splits(data, change):
    edit(data, change)
    report = check_dataset(data)
    assert report.problems == []
    assert report.statistics["layout"] == "table data.csv, without splits"


def test_a_split_is_read_beside_a_column_of_such_names(data):
    edit(data, lambda text: text.replace("split\n", "split,phase\n").replace("val\n", "val,train\n"))
    report = check_dataset(data, splits=("train", "val", "test"))
    assert report.problems == []
