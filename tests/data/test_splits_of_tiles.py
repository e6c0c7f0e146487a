"""A run on tiles of scenes: the scenes that it was trained on are not scored as others."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from convlora.data.check import check_dataset
from convlora.data.convert import convert_dataset
from convlora.data.splits import check_unseen, limit_training, read_record, record_splits


@pytest.fixture
def scenes(tmp_path):
    """Twelve scenes of 40 x 50 pixels without splits, four tiles of 32 each, and two that are no larger."""
    root = tmp_path / "scenes"
    for i in range(14):
        name, size = f"scene{i:02}.png", (40, 50) if i < 12 else (20, 30)
        pixels = np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8)
        save(root / "images" / name, pixels)
        save(root / "masks" / name, (pixels[..., 0] > 128).astype(np.uint8))
    return root


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def record(scenes, tmp_path):
    """Of a run on tiles, whose splits are those of another seed than is drawn for the scenes."""
    convert_dataset(scenes, tmp_path / "tiles", tile=32, split_seed=7)
    return write_record(tmp_path, check_dataset(tmp_path / "tiles").dataset)


def write_record(folder, dataset):
    (folder / "split.json").write_text(record_splits(dataset), encoding="utf-8")
    return read_record(folder)


def in_folders(scenes, split="test"):
    for kind in ("images", "masks"):
        (scenes / split).mkdir(exist_ok=True)
        (scenes / kind).rename(scenes / split / kind)
    return check_dataset(scenes, splits=(split,)).dataset


def stems(dataset, split):
    return {pair.stem for pair in dataset.splits[split]}


def test_scenes_are_in_the_splits_of_their_tiles(scenes, record):
    wanted = check_dataset(scenes, split_seed=7).dataset
    report = check_dataset(scenes, record=record)
    assert not report.dataset.by_seed
    for split in ("train", "val", "test"):
        assert stems(report.dataset, split) == stems(wanted, split)
    assert stems(report.dataset, "test") != stems(check_dataset(scenes).dataset, "test")
    (problem,) = report.problems
    trained = [name for name in sorted(stems(wanted, "train")) if name < "scene12"]
    assert (problem.code, problem.severity) == ("scenes-of-tiles", "warning")
    assert problem.found == (
        "12 images are scenes, by their names, of which the run has tiles; "
        f"{len(trained)} of them are training images: {', '.join(trained[:8])}"
        + (f" and {len(trained) - 8} more" if len(trained) > 8 else "")
    )


def test_a_scene_with_tiles_in_two_splits_is_one_of_training(scenes, record):
    trained = [name for name in record.splits["train"] if "_" in name]
    record.splits["test"][trained[0]] = record.splits["train"].pop(trained[0])
    assert trained[0][:7] in stems(check_dataset(scenes, record=record).dataset, "train")


def test_tiles_that_were_left_out_are_of_training_scenes(scenes, record, tmp_path):
    part = limit_training(check_dataset(tmp_path / "tiles").dataset, 1, seed=0)
    found = check_dataset(scenes, record=write_record(tmp_path, part)).dataset
    assert stems(found, "train") == stems(check_dataset(scenes, split_seed=7).dataset, "train")


def test_scenes_that_are_gone(scenes, record):
    """Each was some tiles of the run."""
    gone = sorted(stems(check_dataset(scenes, split_seed=7).dataset, "train"))[:2]
    for name in gone:
        for kind in ("images", "masks"):
            (scenes / kind / f"{name}.png").unlink()
    lost = sum(name.startswith(tuple(gone)) for name in record.splits["train"])
    report = check_dataset(scenes, record=record)
    told = {problem.code: problem.found for problem in report.problems}
    assert told.keys() == {"scenes-of-tiles", "missing-images"}
    total = sum(map(len, record.splits.values()))
    assert told["missing-images"] == f"{lost} of the {total} images of the run are gone"


def test_scenes_in_folders_of_their_own(scenes, record):
    """A name is no proof there: many sets count their images from one in each split."""
    wanted = stems(check_dataset(scenes, split_seed=7).dataset, "train")
    found = in_folders(scenes)
    problems = {problem.code: problem for problem in check_unseen(found, "test", record)}
    tiled = [name for name in sorted(wanted) if name < "scene12"]
    problem = problems["trained-on-tiles"]
    assert problem.severity == "warning"
    assert problem.found.startswith(
        f"{len(tiled)} images of the split 'test' have the names of scenes whose tiles the run was trained "
        f"on: {', '.join(tiled[:8])}"
    )
    assert ("trained-on" in problems) == bool(wanted - set(tiled))  # those that were not cut, byte for byte
    asked = dataclasses.replace(found, splits={"train": found.splits["test"]})
    assert list(check_unseen(asked, "train", record)) == []


def test_scenes_of_the_same_name_in_each_split(scenes, record):
    """The run's own test tiles are of scenes called so too."""
    for name in record.splits["train"]:
        record.splits["test"][name] = ""
    codes = {problem.code for problem in check_unseen(in_folders(scenes), "test", record)}
    assert "trained-on-tiles" not in codes
