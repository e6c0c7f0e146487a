"""From every form of data to a trained and scored model, by the commands that a user types."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from convlora.data import coco_file
from small import write_image, write_roboflow, write_shapes, write_table, write_yolo

TRAIN = ["--max-steps", "2", "--image-size", "64", "--set", "eval_every=2", "--set", "previews=1"]


@pytest.fixture
def run(command):
    """Run a command; returns exit code, standard output, standard error."""
    return command


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_table, []),
        (write_roboflow, ["--set", "workers=1"]),  # labels go to another process
        (write_yolo, []),
    ],
)
def test_train_and_evaluate(run, small_backbone, tmp_path, write, options):
    data, out = write(tmp_path / "data"), tmp_path / "run"
    code, _, error = run("train", data, "--out", out, "--backbone", small_backbone, *TRAIN, *options)
    assert (code, error) == (0, "")
    code, text, error = run("evaluate", out, data, "--overlay", tmp_path / "pictures")
    assert (code, error) == (0, "")
    assert "3 images" in text
    assert len(list((tmp_path / "pictures").glob("test*.png"))) == 3
    scores = json.loads((out / "metrics.json").read_text())["test"]
    assert scores["n_images"] == 3
    classes = ["background", "foreground"] if write is write_table else ["background", "cat", "dog"]
    assert [key.removeprefix("dice/") for key in scores if key.startswith("dice/")] == classes
    assert list((out / "previews").iterdir())


def test_annotations_are_parsed_once(run, small_backbone, tmp_path, monkeypatch):
    """By training and by evaluate, which both need the names of the classes besides; the names come first."""
    data, out, parsed = write_roboflow(tmp_path / "data"), tmp_path / "run", []
    load = coco_file._load
    monkeypatch.setattr(coco_file, "_load", lambda file: (parsed.append(file.parent.name), load(file))[1])
    for arguments in (
        ("train", data, "--out", out, "--backbone", small_backbone, *TRAIN),
        ("evaluate", out, data),
    ):
        code, _, error = run(*arguments)
        assert (code, sorted(parsed)) == (0, ["test", "train", "val"]), error
        parsed.clear()
    for file in data.rglob("*.json"):
        file.write_text(file.read_text().replace('"cat"', '"horse"'))
    next((data / "test").glob("*.png")).write_bytes(b"")
    code, _, error = run("evaluate", out, data)
    assert (code, "names 3, others: background, horse, dog" in error) == (2, True), error
    assert (len(parsed), "cannot be read" in error) == (3, False)


def test_converted_data_trains_to_the_same_scores(run, small_backbone, tmp_path):
    """The labels of polygons are those of the masks that convert writes of them, for all commands."""
    data, plain = write_yolo(tmp_path / "data"), tmp_path / "plain"
    assert run("convert", data, "--out", plain)[0] == 0
    scores = []
    for name in (data, plain):
        out = tmp_path / f"run_{name.name}"
        assert run("train", name, "--out", out, "--backbone", small_backbone, *TRAIN)[0] == 0
        assert run("evaluate", out, name)[0] == 0
        found = json.loads((out / "metrics.json").read_text())
        scores.append(
            {
                split: {k: v for k, v in found[split].items() if k not in {"checkpoint", "data"}}
                for split in found
            }
        )
    assert scores[0] == scores[1]
    assert scores[0]["test"]["dice/background"] > 0


def test_palette_of_a_run(run, small_backbone, tmp_path):
    data, out, file = tmp_path / "data", tmp_path / "run", tmp_path / "colours.txt"
    write_shapes(data, 2, {"train": 4, "val": 2, "test": 2})
    colours = np.array([(0, 0, 0), (0, 200, 0)], np.uint8)
    for path in data.rglob("masks/*.png"):
        Image.fromarray(colours[np.array(Image.open(path))]).save(path)
    file.write_text("0 0 0 ground\n0 200 0 disc\n")
    code, _, error = run("train", data, "--out", out, "--backbone", small_backbone, *TRAIN)
    assert code == 2
    assert "0 200 0 class1  # " in error
    arguments = ["--out", out, "--backbone", small_backbone, "--palette", file, *TRAIN]
    code, text, error = run("train", data, *arguments)
    assert (code, error) == (0, "")
    assert f"Next: convlora evaluate {out} {data} --palette {file}" in text
    assert f"palette: {file}" in (out / "config.yaml").read_text()
    code, _, error = run("evaluate", out, data)
    assert code == 2
    assert "test_00.png" in error
    assert f"The run was trained with a palette. Give it here too: --palette {file}." in error
    file.rename(tmp_path / "moved.txt")
    code, _, error = run("evaluate", out, data)
    assert code == 2
    assert f"Its colours need a palette: --palette FILE, or {data / 'palette.txt'}. convlora check" in error
    assert "drafted for" not in error
    file = tmp_path / "moved.txt"
    assert run("evaluate", out, data, "--palette", file)[0] == 0
    assert "dice/disc" in json.loads((out / "metrics.json").read_text())["test"]


def test_masks_that_a_run_read_by_a_palette_are_not_scored_by_value_in_silence(run, small_backbone, tmp_path):
    """Inverted masks: without the palette the background of the model is the foreground of the data."""
    data, out = write_shapes(tmp_path / "data", 2, {"train": 4, "val": 2, "test": 2}), tmp_path / "run"
    for path in data.rglob("masks/*.png"):
        Image.fromarray((255 * (1 - np.array(Image.open(path)))).astype(np.uint8)).save(path)
    other = shutil.copytree(data, tmp_path / "other")
    (data / "palette.txt").write_text("255 255 255 background\n0 0 0 foreground\n", encoding="utf-8")
    assert run("train", data, "--out", out, "--backbone", small_backbone, *TRAIN)[0] == 0
    recorded = json.loads((out / "best" / "adapter_config.json").read_text(encoding="utf-8"))["training"]
    assert recorded["largest_image"] == [48, 64]  # which predict needs
    assert run("evaluate", out, data)[::2] == (0, "")
    code, _, error = run("evaluate", out, other)
    assert code == 0
    assert f"Give it here too: --palette {data / 'palette.txt'}." in error
    assert run("evaluate", out, other, "--palette", data / "palette.txt")[::2] == (0, "")


@pytest.fixture
def without_splits(run, small_backbone, tmp_path):
    """Data without splits, and a run on it."""
    data, out = write_table(tmp_path / "data", split=False, count=6), tmp_path / "run"
    code, text, _ = run("train", data, "--out", out, "--backbone", small_backbone, *TRAIN)
    assert code == 0
    assert "note: splits: made here by seed 0, image by image: scores are too good if" in text.replace(
        "\n", " "
    )
    return data, out


def test_evaluate_keeps_to_the_splits_of_the_run(run, without_splits):
    data, out = without_splits
    tested = json.loads((out / "split.json").read_text())["test"]
    for i in range(4):
        write_image(data / "pictures" / f"a_new{i}.png", seed=9)
        shutil.copy(data / "truth" / "train0_mask.png", data / "truth" / f"a_new{i}_mask.png")
        with (data / "data.csv").open("a") as file:
            file.write(f"pictures/a_new{i}.png,truth/a_new{i}_mask.png\n")
    code, _, error = run("evaluate", out, data, "--overlay", out / "pictures")
    assert code == 0
    assert "warning: [new-images] images: 4 images have come since the run" in error
    assert {path.stem for path in (out / "pictures").glob("[!_]*.png")} == set(tested)


def test_evaluate_refuses_training_images(run, without_splits, tmp_path):
    data, out = without_splits
    trained = list(json.loads((out / "split.json").read_text())["train"])
    for kind, end in (("images", ""), ("masks", "_mask")):
        folder = tmp_path / "mixed" / "test" / kind
        folder.mkdir(parents=True)
        for i, name in enumerate(trained[:3]):
            source = data / ("truth" if end else "pictures") / f"{name}{end}.png"
            shutil.copy(source, folder / f"renamed{i}.png")
    code, _, error = run("evaluate", out, tmp_path / "mixed")
    assert code == 2
    assert "[trained-on] test: 3 images of the split 'test' are training images of the run" in error


def test_a_model_without_its_run(run, without_splits, tmp_path):
    data, out = without_splits
    shared = shutil.copytree(out / "best", tmp_path / "shared")
    assert run("evaluate", shared, data)[2] == ""  # the same data: the split by the seed is that of the run
    table = data / "data.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-1]) + "\n")
    code, _, error = run("evaluate", shared, data)
    assert code == 0
    assert "warning: [unknown-splits]" in error
    assert "Without the split.json of the run nobody can tell" in error


def test_resume_keeps_to_the_splits_of_the_run(run, small_backbone, tmp_path):
    from convlora.config import load_config
    from convlora.data.check import check_dataset
    from convlora.training.fit import fit

    data, out = write_table(tmp_path / "data", split=False, count=6), tmp_path / "run"
    assert run("train", data, "--out", out, "--backbone", small_backbone, *TRAIN)[0] == 0
    (out / "state.safetensors").unlink()  # as if killed before the first state was saved
    recorded = json.loads((out / "split.json").read_text())
    swapped = {"train": recorded["test"] | recorded["val"], "val": recorded["train"], "test": {}}
    (out / "split.json").write_text(json.dumps(swapped))
    best = fit(load_config(out / "config.yaml"), resume=True)
    assert best["n_images"] == len(recorded["train"]) != len(check_dataset(data).dataset.splits["val"])
