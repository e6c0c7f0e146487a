"""`convlora evaluate`: what is refused before the work, what is told, and that no score is lost."""

import csv
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import convlora
from convlora import evaluation
from convlora.checkpoint import save_pretrained
from convlora.errors import ConfigError, WriteError
from convlora.evaluation import evaluate_run, write_scores
from convlora.image_scores import ImageScores
from convlora.inference.predictor import Predictor
from convlora.model import Segmenter


@pytest.fixture
def data(binary_data, tmp_path):
    return shutil.copytree(binary_data, tmp_path / "data")


@pytest.fixture(scope="module")
def three_class_adapter(tmp_path_factory, small_backbone):
    folder = tmp_path_factory.mktemp("three") / "model"
    save_pretrained(Segmenter.from_backbone(str(small_backbone), ("background", "disc", "bar")), folder)
    return folder


# arguments after RUN and DATA, and the message; ROOT is a folder of the test's own
REFUSED = {
    "unknown split": (
        ["--split", "tset"],
        "split is 'tset'; it must be one of train, val, test. Did you",
    ),
    "folder's name of a split": (["--split", "validation"], "Did you mean 'val'?"),
    "precision": (["--precision", "fp8"], "precision is 'fp8'; it must be one of auto, fp32"),
    "device": (["--device", "gpu"], "device is 'gpu'"),
    "json is a folder": (["--json", "ROOT"], "is a folder; give the name of a file"),
    "json below a file": (["--json", "ROOT/file/s.json"], "is a file, not a folder"),
    "json over another file": (["--json", "ROOT/file"], "exists and is no .json file"),
    "table over another one": (["--per-image", "ROOT/table.csv"], "holds no scores of images, so it is not"),
    "table over another file": (["--per-image", "ROOT/file"], "exists and is no .csv file"),
    "table is a folder": (["--per-image", "ROOT"], "is a folder; give the name of a file, such as"),
    "overlay is a file": (["--overlay", "ROOT/file"], "is a file, not a folder"),
    "overlay over the truth": (["--overlay", "DATA/test/masks", "--overwrite"], "would overwrite an input"),
    "overlay over the images": (["--overlay", "DATA/test/images", "--overwrite"], "would overwrite an input"),
    "overlay over pictures": (["--overlay", "ROOT/pictures"], "exists already, and nothing is written over"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_the_work(command, binary_adapter, data, tmp_path, monkeypatch, name):
    monkeypatch.setattr(evaluation, "score_pairs", lambda *_: pytest.fail("images were scored first"))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "table.csv").write_text("image,mask,split\na.png,b.png,train\n")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "test_01.png").write_bytes(b"mine")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    arguments, message = REFUSED[name]
    places = {"ROOT": tmp_path, "DATA": data}
    filled = []
    for argument in arguments:
        head, slash, tail = argument.partition("/")
        filled.append(f"{places.get(head, head)}{slash}{tail}")
    code, _, error = command("evaluate", binary_adapter, data, *filled)
    assert (code, message in error) == (2, True), error
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("foreground\nbackground\n", "the same in another order: foreground, background"),
        ("background\ncell\n", "names 2, others: background, cell"),
        ("background\nforeground\nedge\n", "names 3, others"),
    ],
)
def test_other_classes(command, binary_adapter, data, names, message):
    (data / "classes.txt").write_text(names)
    code, _, error = command("evaluate", binary_adapter, data)
    assert code == 2
    assert "The model has 2 classes, background, foreground" in error
    assert message in error
    assert "write the model's into classes.txt" in error


def test_the_same_classes_and_none(binary_adapter, data):
    unnamed = convlora.evaluate(binary_adapter, data)
    (data / "classes.txt").write_text("background\nforeground\n")
    named = convlora.evaluate(binary_adapter, data)
    assert named == unnamed
    assert 0 < named["pixel_accuracy"] < 1


def test_a_binary_model_on_more_classes(command, binary_adapter, three_class_data, tmp_path):
    data = shutil.copytree(three_class_data, tmp_path / "data")
    (data / "classes.txt").unlink()
    code, _, error = command("evaluate", binary_adapter, data)
    assert code == 2
    assert "the masks hold the values 0, 1, 2" in error


def test_splits_that_are_missing(command, binary_adapter, data):
    shutil.rmtree(data / "test")
    code, _, error = command("evaluate", binary_adapter, data)
    assert (code, "the split 'test' is missing" in error) == (2, True)
    shutil.rmtree(data / "val" / "masks")
    code, _, error = command("evaluate", binary_adapter, data, "--split", "val")
    assert (code, "has no folder 'masks'" in error) == (2, True)
    code, _, error = command("evaluate", binary_adapter, data / "no")
    assert (code, "is not a folder that exists" in error) == (2, True)


def test_warnings_are_told(command, binary_adapter, data):
    code, _, error = command("evaluate", binary_adapter, data)
    assert code == 0
    assert "stray-file" not in error
    (data / "test" / "images" / "notes.txt").write_text("x")
    code, _, error = command("evaluate", binary_adapter, data)
    assert code == 0
    assert "warning: [stray-file]" in error


def test_an_absent_class(command, three_class_adapter, three_class_data, tmp_path):
    """Nothing but background, and a model that says so: the other classes have no score."""
    data = shutil.copytree(three_class_data, tmp_path / "data")
    for file in (data / "test" / "masks").iterdir():
        Image.fromarray(np.zeros_like(np.array(Image.open(file)))).save(file)
    predict = Predictor.predict

    def background(self, image):
        result = predict(self, image)
        result.ids[:] = 0
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictor, "predict", background)
        code, out, _ = command("evaluate", three_class_adapter, data, "--json", tmp_path / "new" / "s.json")
    assert code == 0
    scores = json.loads((tmp_path / "new" / "s.json").read_text())
    assert scores["dice/background"] == 1.0
    assert scores["dice/disc"] is None
    assert scores["mean_iou"] == 1.0
    assert "left out of the means: disc, bar" in out
    assert re.search(r"disc .* - ", out)


def test_an_image_all_ignored_changes_nothing(three_class_adapter, three_class_data, tmp_path):
    data = shutil.copytree(three_class_data, tmp_path / "data")
    before = convlora.evaluate(three_class_adapter, data)
    pixels = np.array(Image.open(data / "test" / "images" / "test_00.png"))
    Image.fromarray(pixels // 2).save(data / "test" / "images" / "void.png")
    Image.fromarray(np.full(pixels.shape[:2], 255, np.uint8)).save(data / "test" / "masks" / "void.png")
    after = convlora.evaluate(three_class_adapter, data)
    assert (before.pop("n_images"), after.pop("n_images")) == (4, 5)
    assert after == before
    assert before["mean_iou"] > 0


def test_each_image_is_scored_once(binary_adapter, data, monkeypatch):
    seen = []
    predict = Predictor.predict

    def watched(self, image):
        seen.append(image.sum())
        return predict(self, image)

    monkeypatch.setattr(Predictor, "predict", watched)
    assert convlora.evaluate(binary_adapter, data)["n_images"] == len(seen) == len(set(seen)) == 4


def test_a_model_of_the_hub_is_asked_for_once(binary_adapter, data, tmp_path, monkeypatch):
    """Data without splits needs the adapter folder a second time, the scores its name a third."""
    asked = []

    def snapshot(name, allow_patterns):
        asked.append(name)
        return str(binary_adapter)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    for kind in ("images", "masks"):
        for split in ("train", "val", "test"):
            shutil.copytree(data / split / kind, tmp_path / "flat" / kind, dirs_exist_ok=True)
    told = []
    scores = evaluate_run("someone/model", tmp_path / "flat", warn=told.append)
    assert asked == ["someone/model"]
    assert scores["checkpoint"] == str(binary_adapter)
    assert sum("[unknown-splits] someone/model: " in line for line in told) == 1


def test_keys_are_those_of_the_documentation(binary_adapter, data):
    """docs/data.md, Scores: the keys of a score file are a promise."""
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`([a-z_]+(?:/NAME)?)`", text.split("## Scores")[1].split("\n\n")[2]))
    scores = set(convlora.evaluate(binary_adapter, data)) - {
        "n_images",
        "split",
        "data",
        "checkpoint",
        "engine",
    }
    flat = {re.sub("/.*", "/NAME", key.removeprefix("image_")) for key in scores}
    assert flat == documented - {"image_"}
    assert len(flat) > 10
    assert {"image_mean_iou", "image_dice/foreground"} <= scores


def test_what_json_has_no_name_for_is_null(tmp_path):
    nan, far = float("nan"), float("inf")
    write_scores({"x": nan, "runs": [{"y": -far}, (far, 1, "no", True, None)], "z": 0.5}, tmp_path / "a.json")
    written = json.loads((tmp_path / "a.json").read_text())
    assert written == {"x": None, "runs": [{"y": None}, [None, 1, "no", True, None]], "z": 0.5}


# --- results that cannot be written ---


def test_scores_are_told_where_they_cannot_be_written(binary_adapter, data, tmp_path, monkeypatch):
    def full(scores, file):
        raise WriteError(f"{file} cannot be written: No space left on device.")

    monkeypatch.setattr(evaluation, "write_scores", full)
    with pytest.raises(WriteError, match=r'(?s)No space left.*The scores are: \{.*"pixel_accuracy": 0\.'):
        evaluate_run(binary_adapter, data, json_file=tmp_path / "s.json")


def test_a_damaged_metrics_file_is_left_as_it_is(binary_adapter, data, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(binary_adapter, run / "best")
    (run / "metrics.json").write_text("{cut")
    scores = convlora.evaluate(run, data)
    assert not math.isnan(scores["mean_iou"])
    assert (run / "metrics.json").read_text() == "{cut"
    assert "metrics.json was not changed" in capsys.readouterr().err
    (run / "metrics.json").write_text('{"val": {"mean_iou": 0.5}}')
    convlora.evaluate(run, data)
    written = json.loads((run / "metrics.json").read_text())
    assert written["val"] == {"mean_iou": 0.5}
    assert written["test"]["mean_iou"] == scores["mean_iou"]


def test_pictures_are_written_over_when_asked(command, binary_adapter, data, tmp_path):
    run = ["evaluate", binary_adapter, data, "--overlay", tmp_path / "p"]
    assert command(*run)[0] == 0
    assert len(list((tmp_path / "p").iterdir())) == 5
    code, _, error = command(*run)
    assert (code, "4 other outputs exist already" in error) == (2, True)
    assert command(*run, "--overwrite")[0] == 0


def test_an_image_with_the_overview_s_name(command, binary_adapter, data, tmp_path):
    for kind in ("images", "masks"):
        (data / "test" / kind / "test_00.png").rename(data / "test" / kind / "_overview.png")
    code, _, error = command("evaluate", binary_adapter, data, "--overlay", tmp_path / "p")
    assert (code, "so is an image called. Rename the image" in error) == (2, True)


def test_python_has_the_same_messages(binary_adapter, data):
    with pytest.raises(ConfigError, match="data is None; it must be a path"):
        convlora.evaluate(binary_adapter, None)
    with pytest.raises(ConfigError, match="split is 3; it must be one of train, val, test"):
        convlora.evaluate(binary_adapter, data, 3)


def test_the_scores_of_each_image(command, three_class_adapter, three_class_data, tmp_path):
    file = tmp_path / "new" / "images.csv"
    code, out, _ = command("evaluate", three_class_adapter, three_class_data, "--per-image", file)
    assert code == 0
    with file.open(encoding="utf-8", newline="") as opened:
        rows = {row["image"]: row for row in csv.DictReader(opened)}
    assert list(rows) == [f"test_{i:02}" for i in range(4)]
    scores = convlora.evaluate(
        three_class_adapter, three_class_data, per_image=file
    )  # its own is written anew
    for key in ("dice/disc", "iou/bar", "pixel_accuracy"):
        defined = [float(row[key]) for row in rows.values() if row[key]]
        assert np.mean(defined) == pytest.approx(scores[f"image_{key}"], abs=1e-6)
    dice = {name: float(row["mean_dice_foreground"]) for name, row in rows.items()}
    assert len(set(dice.values())) > 1
    lowest = sorted(dice, key=dice.get)[:3]
    assert "lowest mean Dice: " + ", ".join(f"{name} {dice[name]:.4f}" for name in lowest) in out
    assert "precision" in out


def test_a_score_that_is_not_defined_is_an_empty_cell(tmp_path):
    table = ImageScores()
    table.add("a, b", {"mean_dice_foreground": math.nan, "mae": 0.25})
    table.add("c", {"mean_dice_foreground": 0.5, "mae": 0.125})
    table.write(tmp_path / "t.csv")
    text = (tmp_path / "t.csv").read_text(encoding="utf-8")
    assert text == 'image,mean_dice_foreground,mae\n"a, b",,0.250000\nc,0.500000,0.125000\n'
    assert table.worst() == [("c", 0.5)]


def test_warnings_of_one_kind_are_gathered(command, binary_adapter, data):
    for path in sorted((data / "test" / "masks").iterdir())[:3]:
        with Image.open(path) as mask:
            Image.new("L", mask.size).save(path)
    code, _, error = command("evaluate", binary_adapter, data)
    told = [line for line in error.splitlines() if "[empty-masks]" in line]
    assert (code, len(told)) == (0, 1)
    assert told[0].startswith("warning: [empty-masks] ")
    assert told[0].endswith("(2 more like it: convlora check shows all)")
