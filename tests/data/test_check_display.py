"""The check's progress and text, class names that are asked for, and damaged metadata."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from typer.testing import CliRunner

from breaks import MASK, PICTURE, turn
from convlora.analysis.analyze import _dataset
from convlora.cli.app import app
from convlora.comparison.compare import compare
from convlora.comparison.settings import make_settings
from convlora.config import make_config
from convlora.data.check import check_dataset
from convlora.data.images import orientation, read_image
from convlora.data.labels import MaskFile
from convlora.data.progress import show_progress
from convlora.data.report import Problem
from convlora.data.scan import scan_mask
from convlora.errors import ConfigError
from small import write_shapes


@pytest.fixture
def data(tmp_path):
    return write_shapes(tmp_path / "data", 2, {"train": 8, "val": 4})


# --- class names that are asked for ---


@pytest.mark.parametrize(
    ("asked", "severity"),
    [("land,sea", "error"), ("sea,land,sky", "error"), ("water,ground", "warning"), ("sea,land", None)],
)
def test_names_that_differ_from_the_file(data, asked, severity):
    (data / "classes.txt").write_text("sea\nland\n")
    report = check_dataset(data, classes=asked.split(","))
    told = [(p.severity, p.code, Path(p.file).name) for p in report.problems if p.code == "class-names"]
    assert told == ([(severity, "class-names", "classes.txt")] if severity else [])
    result = CliRunner().invoke(app, ["check", str(data), "--classes", asked])
    assert result.exit_code == (severity == "error")


def test_wrong_names_do_not_hide_wrong_files(data):
    (data / "classes.txt").write_text("sea\n")
    (data / MASK).unlink()
    assert {"class-names", "missing-mask"} <= {p.code for p in check_dataset(data).errors}


def test_a_file_is_named_once(data):
    (data / "train" / "masks").rename(data / "train" / "truths")
    text = check_dataset(data).to_text()
    assert f"error: [layout] {data / 'train'} has no folder 'masks'." in text
    nowhere = Problem.of_error("layout", data, ValueError(f"{data} is no folder. Give one."))
    assert str(nowhere) == f"[layout] {data} is no folder. Give one."
    assert Problem("error", "x", "val", "values 3", "", "").told == "val: values 3."


@pytest.fixture
def dotted(tmp_path):
    """Folders and a file whose names hold what else ends a sentence or a name."""
    return write_shapes(tmp_path / "Dr. Smith" / "vol. 2", 2, {"train": 8, "val": 4})


@pytest.mark.parametrize(
    ("change", "file", "found", "fix"),
    [
        (lambda d: shutil.rmtree(d / "train" / "masks"), "train", "has no folder 'masks'", "A data folder h"),
        (lambda d: (d / "classes.txt").write_text("sea\n"), "classes.txt", "names 1 classes", "Correct it: "),
        (lambda d: (d / "data.csv").write_text(""), "", "could be read as", "Give the file that is meant"),
        (
            lambda d: (d / "palette.txt").write_bytes(b"\xff"),
            "palette.txt",
            "is not UTF-8",
            "Save it as UTF-8.",
        ),
    ],
)
def test_a_point_in_the_name_of_a_folder_ends_no_sentence(dotted, command, change, file, found, fix):
    change(dotted)
    code, said, _ = command("check", dotted, "--json")
    told = next(p for p in json.loads(said)["problems"] if p["code"] in {"layout", "class-names", "palette"})
    assert (code, told["file"]) == (1, str(dotted / file))
    assert f"{dotted / file} {found}" in told["found"]
    assert told["fix"].startswith(fix)


def test_of_two_names_the_whole_one_is_told(tmp_path):
    """'a' is a file too, and the message begins with its name."""
    (tmp_path / "a").write_text("")
    (tmp_path / "a b, c.csv").write_text("image\n")
    told = check_dataset(tmp_path / "a b, c.csv").errors[0]
    assert told.file == str(tmp_path / "a b, c.csv")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data").write_text("")
    (tmp_path / "set" / "data.csv").write_text("image\n")
    assert check_dataset(tmp_path / "set").errors[0].file == str(tmp_path / "set" / "data.csv")


# --- metadata ---


def test_damaged_metadata_do_not_stop_the_reading(data):
    path = data / PICTURE.replace(".png", ".jpg")
    turn(PICTURE, 6)(data)
    with Image.open(data / PICTURE) as image:
        image.save(path, exif=image.getexif())
    (data / PICTURE).unlink()
    path.write_bytes(path.read_bytes().replace(b"Exif\0\0MM\0*", b"Exif\0\0MM\0\xf0"))
    with Image.open(path) as image, pytest.raises(SyntaxError, match="not a TIFF file"):
        ImageOps.exif_transpose(image.convert("RGB"))
    with Image.open(path) as image:
        assert orientation(image.convert("RGB")) == 1
    assert check_dataset(data).ok
    assert read_image(path).shape == (60, 40, 3)


@pytest.mark.parametrize("value", range(1, 9))
def test_every_turn_is_applied_as_pillow_does(tmp_path, value):
    array = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    turn("a.png", value)(tmp_path)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")), dtype=np.float32) / 255
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)
    assert np.array_equal(expected, array / np.float32(255)) is (value == 1)


# --- many files ---


def test_the_text_stays_short(data):
    for path in (data / "train" / "masks").iterdir():
        path.unlink()
    for i in range(30):
        shutil.copy(data / PICTURE, data / "train" / "images" / f"more_{i:02d}.png")
    report = check_dataset(data)
    lines = report.to_text().splitlines()
    assert any(line.startswith("error: [missing-mask] 38 times") for line in lines)
    assert "  ... and 28 more; --json shows all" in lines
    assert sum("no mask in train/masks" in line for line in lines) == 10
    assert sum(p["code"] == "missing-mask" for p in json.loads(report.to_json())["problems"]) == 38


def test_lines_tell_how_far_it_is(capsys):
    with show_progress(400) as advance:
        for _ in range(400):
            advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [f"checked {n} of 400 files" for n in range(40, 401, 40)]


def test_few_files_need_no_lines(capsys):
    with show_progress(20) as advance:
        for _ in range(20):
            advance()
    assert capsys.readouterr() == ("", "")


def test_one_process_of_several_tells(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with show_progress(400) as advance:
        for _ in range(400):
            advance()
    assert capsys.readouterr() == ("", "")


def test_every_file_is_counted(data):
    told = []

    @contextmanager
    def count(total):
        told.append(total)
        yield lambda: told.append("file")

    check_dataset(data, progress=count)
    assert told == [24, *["file"] * 24]


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with show_progress(3) as advance:
        for _ in range(3):
            advance()
    out, err = capsys.readouterr()
    assert out == ""
    assert "checking files" in err
    assert "3/3" in err


@pytest.mark.parametrize("values", [(0,), (0, 1), (0, 255), (3, 2, 1), (0, 1, 4), tuple(range(256))])
def test_the_pixels_of_each_value_are_counted(tmp_path, values):
    array = np.random.default_rng(0).choice(values, (64, 48)).astype(np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    found, pixels = np.unique(array, return_counts=True)
    counts = scan_mask(MaskFile(tmp_path / "a.png")).counts
    assert counts == dict(zip(found.tolist(), pixels.tolist(), strict=True))
    assert list(counts) == sorted(counts)
    assert len(counts) == len(values)


def test_every_command_that_checks_shows_how_far_it_is(data, tmp_path, monkeypatch, command, capsys):
    """A log file has lines; else many files are a long silence."""
    monkeypatch.setattr("convlora.data.progress._FEW", 1)
    code, _, error = command("convert", data, "--out", tmp_path / "new")
    assert (code, "checked 24 of 24 files" in error) == (0, True)
    config = make_config({"data": data, "out": tmp_path / "out", "metric": "none"})
    with pytest.raises(ConfigError, match="metric 'none'"):
        compare(config, make_settings("lora", split="val"))
    assert "checked 24 of 24 files" in capsys.readouterr().err
    _dataset(tmp_path, data, ["background", "foreground"], "val", None, print)
    assert "checked 24 of 24 files" in capsys.readouterr().err
