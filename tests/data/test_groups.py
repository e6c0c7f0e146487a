"""check --group-by: groups that are in two splits are named, in splits that are there and in drawn ones."""

import json

import pytest

from convlora import check
from convlora.data.check import check_dataset
from convlora.errors import ConfigError
from small import write_shapes, write_table


@pytest.fixture
def data(tmp_path):
    """Slices of patients: 0 and 1 in train, 2 in val; 0 in test too."""
    root = write_shapes(tmp_path / "data", 2, {"train": 4, "val": 2, "test": 2})
    for i, patient in enumerate((0, 0, 1, 1)):
        rename(root, "train", i, patient)
    for i in range(2):
        rename(root, "val", i, 2)
        rename(root, "test", i, 0)
    return root


def rename(root, split, number, patient):
    for kind in ("images", "masks"):
        file = root / split / kind / f"{split}_{number:02}.png"
        file.rename(file.with_name(f"p{patient}-{split}{number}.png"))


def told(report):
    return [problem for problem in report.problems if problem.code == "group-in-splits"]


def test_a_group_in_two_splits(data):
    assert check(data).problems == []
    report = check(data, group_by=r"p(\d)-")
    (problem,) = told(report)
    assert not report.ok
    assert problem.file == str(data / "train" / "images" / "p0-train0.png")
    assert problem.found == "the group '0' has 2 images in train, 2 images in test"
    assert problem.fix == "Move all of its images into one split."
    assert report.statistics["groups"] == "2 in train (0, 1), 1 in val (2), 1 in test (0)"


def test_groups_that_are_apart(data):
    for kind in ("images", "masks"):
        for file in (data / "test" / kind).iterdir():
            file.rename(file.with_name(file.name.replace("p0", "p3")))
    report = check(data, group_by=r"p\d")
    assert report.problems == []
    assert report.statistics["groups"] == "2 in train (p0, p1), 1 in val (p2), 1 in test (p3)"


def test_splits_that_a_seed_drew(tmp_path):
    """Those are looked at that `train` would use; what is told makes others."""
    root = write_table(tmp_path / "data", split=False)
    problems = told(check_dataset(root, group_by="train|val|test"))
    assert problems
    assert problems[0].fix.endswith(f"convlora convert {root} --out NEW --group-by 'train|val|test'.")
    assert check_dataset(root).ok


def test_command(data, command):
    code, text, _ = command("check", data, "--group-by", r"p\d", "--json")
    report = json.loads(text)
    assert (code, report["ok"]) == (1, False)
    assert [problem["code"] for problem in report["problems"]] == ["group-in-splits"]
    assert command("check", data, "--group-by", ".")[0] == 1
    assert command("check", data, "--group-by", "p.-(.*)")[0] == 0


def test_expressions_that_do_not_fit(data, command):
    code, _, said = command("check", data, "--group-by", "p(")
    assert (code, "group_by is 'p(', which is no regular expression" in said) == (2, True)
    with pytest.raises(ConfigError, match=r"of which nothing is in the name train/images/p1-train2.png"):
        check(data, group_by="p0|p2")
