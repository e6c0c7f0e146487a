"""The commands as functions give what the commands write, and raise where these exit with an error."""

import json
import os
import re
import shutil
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import convlora
from convlora.errors import ConfigError, ConvLoraError, WeightsError, WriteError
from convlora.inference import files as files_module
from convlora.training import report


@pytest.fixture
def run(binary_data, small_backbone, tmp_path):
    method = {"name": "lora", "rank": 2}
    options = {"backbone": str(small_backbone), "max_steps": 1, "image_size": 64, "previews": 0}
    convlora.train(binary_data, tmp_path / "run", method=method, **options)
    return tmp_path / "run"


@pytest.fixture
def own_data(binary_data, tmp_path):
    return shutil.copytree(binary_data, tmp_path / "data")


def masks(folder):
    return {file.name: np.array(Image.open(file)) for file in sorted(folder.glob("*.png"))}


def test_check_is_the_command(own_data, command):
    assert convlora.check(own_data).ok
    (own_data / "train" / "masks" / "train_00.png").unlink()
    report = convlora.check(str(own_data), classes=["background", "cell"])
    assert not report.ok
    code, said, _ = command("check", own_data, "--classes", "background,cell", "--json")
    assert (code, json.loads(said)) == (1, json.loads(report.to_json()))
    assert "missing-mask" in {problem.code for problem in report.problems}


def test_convert_is_the_command(own_data, command, tmp_path):
    written = convlora.convert(str(own_data), tmp_path / "a", classes=["background", "cell"], tile=32)
    arguments = ("--classes", "background,cell", "--tile", "32")
    code, said, _ = command("convert", own_data, "--out", tmp_path / "b", *arguments)
    assert code == 0
    assert f"Wrote {', '.join(f'{n} {split}' for split, n in written.counts.items())} images" in said
    assert {len(list((tmp_path / "a" / split / "masks").iterdir())) for split in written.counts} == set(
        written.counts.values()
    )
    files = [path.relative_to(tmp_path / "a") for path in sorted((tmp_path / "a").rglob("*.*"))]
    assert [path for path in files if "_00" in path.name]  # tiles
    assert files == [path.relative_to(tmp_path / "b") for path in sorted((tmp_path / "b").rglob("*.*"))]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    with pytest.raises(ConfigError, match="out is 5; it must be a path"):
        convlora.convert(own_data, 5)
    with pytest.raises(ConvLoraError, match="is not empty"):
        convlora.convert(own_data, tmp_path / "a")


def test_check_takes_names_one_by_one(binary_data):
    with pytest.raises(ConfigError, match=r"classes is 'background,cell'; it must be a list of names"):
        convlora.check(binary_data, classes="background,cell")
    for wrong in (5, [1, 2], []):
        with pytest.raises(ConfigError, match=r"classes is .*; it must be a list of names, id 0 first"):
            convlora.check(binary_data, classes=wrong)
    with pytest.raises(ConfigError, match="palette is ''; it must be a path"):
        convlora.check(binary_data, palette="")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("seeds", "3", "a whole number"),
        ("seeds", True, "a whole number"),
        ("first_seed", None, "a whole number"),
        ("train_sizes", [8, 16], "text, with commas between several, such as '8,16,all'"),
        ("metrics", ["mean_iou"], "text, with commas"),
        ("methods", ["lora"], "text, with commas between several, such as 'lora,conv-lora'"),
        ("tune_lr", "no", "True or False"),
        ("ray", 5, "the address of a Ray cluster, or 'local'"),
    ],
)
def test_arguments_of_compare_that_no_command_line_can_give(binary_data, tmp_path, name, value, rule):
    with pytest.raises(ConfigError) as error:
        convlora.compare(binary_data, tmp_path / "out", **{"methods": "lora", name: value})
    assert str(error.value).startswith(f"{name} is {value!r}; it must be {rule}")


def test_arguments_of_the_others_that_no_command_line_can_give(binary_data, binary_adapter, tmp_path):
    out = tmp_path / "out"
    for images in (None, 5, b"x"):
        with pytest.raises(ConfigError, match=r"images is .*; it must be a path"):
            convlora.predict(binary_adapter, images, out)
    with pytest.raises(ConfigError, match=r"images is \[\]; it must be an image, a folder, or a list of at"):
        convlora.predict(binary_adapter, [], out)
    with pytest.raises(ConfigError, match="overlay is 'no'; it must be True or False"):
        convlora.predict(binary_adapter, binary_data, out, overlay="no")
    with pytest.raises(ConfigError, match="resume is 'no'; it must be True or False"):
        convlora.train(binary_data, out, resume="no")
    for images in ("3", True, 2.5, None):
        with pytest.raises(ConfigError, match=r"images is .*; it must be a whole number, 2 or more"):
            convlora.analyze(binary_adapter, binary_data, out, images=images)
    for images in (1, 0, -1):
        with pytest.raises(ConfigError, match=rf"images is {images}; it must be 2 or more"):
            convlora.analyze(binary_adapter, binary_data, out, images=images)
    for function in (convlora.analyze, convlora.evaluate):
        with pytest.raises(ConfigError, match=r"split is \['test'\]; it must be one of train, val, test"):
            function(binary_adapter, binary_data, split=["test"])


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"], ids=["long", "null"])
def test_names_that_no_file_can_have(binary_data, binary_adapter, tmp_path, name):
    if os.name == "nt" and "\0" not in name:
        pytest.skip("Windows has an error of its own for each way of being too long")
    out, shown = tmp_path / "out", re.escape(repr("x" * 60 + "...") if name[0] == "x" else repr(name))
    for key, call in [
        ("data", partial(convlora.check, name)),
        ("palette", partial(convlora.check, binary_data, palette=name)),
        ("out", partial(convlora.convert, binary_data, name)),
        ("data", partial(convlora.train, name, out)),
        ("out", partial(convlora.train, binary_data, Path(name))),
        ("backbone", partial(convlora.train, binary_data, out, backbone=name)),
        ("out", partial(convlora.compare, binary_data, name)),
        ("per_image", partial(convlora.evaluate, binary_adapter, binary_data, per_image=name)),
        ("images", partial(convlora.predict, binary_adapter, [name], out)),
        ("run", partial(convlora.analyze, name, binary_data)),
        ("run", partial(convlora.merge, name, out)),
        ("run", partial(convlora.load, name)),
    ]:
        with pytest.raises(ConfigError, match=rf"{key}: {shown} can be no path \(.*\)\. Give another\.$"):
            call()
    for what, call in [
        ("The backbone", partial(convlora.from_pretrained, binary_adapter, name)),
        ("The backbone", partial(convlora.Segmenter.from_backbone, name, ("a", "b"))),
        ("The model", partial(convlora.from_pretrained, name)),
        ("The model's folder", partial(convlora.save_pretrained, None, name)),
    ]:
        with pytest.raises(WeightsError, match=rf"{what} {shown} can be no path"):
            call()
    assert not any(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk_ends_a_training_in_a_message(binary_data, small_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "LOG", "/dev/full")
    with pytest.raises(WriteError, match=r"^/dev/full cannot be written: No space left on device\. What was"):
        convlora.train(
            binary_data, tmp_path / "run", backbone=str(small_backbone), max_steps=1, image_size=64
        )


def test_predict_is_the_command(run, binary_data, command, tmp_path):
    images = binary_data / "test" / "images"
    outcome = convlora.predict(run, images, tmp_path / "python", overlay=True, probabilities=True)
    assert (outcome.written, outcome.skipped, outcome.failures) == (4, 0, [])
    assert command("predict", run, images, "--out", tmp_path / "line", "--overlay")[0] == 0
    one, other = masks(tmp_path / "python"), masks(tmp_path / "line")
    assert one.keys() == other.keys()
    assert len(one) == 8
    assert all((one[name] == other[name]).all() for name in one)
    assert len(list((tmp_path / "python").glob("*_probabilities.npy"))) == 4


def test_predict_takes_one_image_or_several(run, binary_data, tmp_path, monkeypatch):
    images = sorted((binary_data / "test" / "images").iterdir())
    assert convlora.predict(run, str(images[0]), tmp_path / "out").written == 1
    with pytest.raises(ConfigError, match="exists already"):
        convlora.predict(run, images[:2], tmp_path / "out")
    outcome = convlora.predict(run, images[:2], tmp_path / "out", existing="skip", tile=32)
    assert (outcome.written, outcome.skipped) == (1, 1)
    with pytest.raises(ConfigError, match="existing is 'keep'; it must be one of refuse, skip, overwrite"):
        convlora.predict(run, images[:2], tmp_path / "out", existing="keep")
    with pytest.raises(ConfigError, match="images is 3; it must be a path"):
        convlora.predict(run, [3], tmp_path / "out")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert convlora.predict("~/run", images[:2], "~/out", existing="overwrite").written == 2


def test_images_that_fail_are_told_and_stop_no_others(run, own_data, tmp_path):
    images = own_data / "test" / "images"
    (images / "test_00.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"1 of 4 images could not be predicted: .*test_00\.png cannot be"):
        outcome = convlora.predict(run, images, tmp_path / "out")
    assert outcome.written == 3
    assert [path.name for path, _ in outcome.failures] == ["test_00.png"]


def test_what_ends_a_prediction_is_raised(run, binary_data, tmp_path, monkeypatch):
    def full(path, write):
        raise WriteError("The disk is full.")

    def stopped(path, write):
        raise KeyboardInterrupt

    images = binary_data / "test" / "images"
    monkeypatch.setattr(files_module, "write_whole", full)
    with pytest.raises(ConvLoraError, match=r"The disk is full\. Go on with .* existing='skip'"):
        convlora.predict(run, images, tmp_path / "out")
    with pytest.raises(ConvLoraError, match=r"The disk is full\. Make the same call again\.$"):
        convlora.predict(run, images, tmp_path / "out", existing="overwrite")
    monkeypatch.setattr(files_module, "write_whole", stopped)
    with pytest.raises(KeyboardInterrupt):
        convlora.predict(run, images, tmp_path / "out")
    monkeypatch.undo()
    assert convlora.predict(run, images, tmp_path / "out", existing="skip").written == 4


def test_merge_gives_the_same_masks(run, binary_data, tmp_path):
    merged = convlora.merge(str(run), tmp_path / "merged")
    assert merged == tmp_path / "merged"
    images = binary_data / "test" / "images"
    for model, out in ((run, "before"), (merged, "after")):
        convlora.predict(model, images, tmp_path / out, precision="fp32")
    before, after = masks(tmp_path / "before"), masks(tmp_path / "after")
    assert all((before[name] == after[name]).mean() > 0.99 for name in before)  # float32 rounding
    with pytest.raises(ConfigError, match=r"merged was trained with decoder-only, .* nothing to merge"):
        convlora.merge(merged, tmp_path / "again")


def test_analyze_is_the_command(run, binary_data, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the probe does not converge on so few pixels
        found = convlora.analyze(run, str(binary_data), images=2)
    written = json.loads((run / "analysis" / "analysis.json").read_text())
    assert json.loads(json.dumps(found.to_dict())) == written
    assert (run / "analysis" / "README.md").is_file()
    with pytest.raises(ConfigError, match=r"who/what is no folder here, so --out must say"):
        convlora.analyze("who/what", binary_data)
