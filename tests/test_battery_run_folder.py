"""Where a run may be written, what is told of it, how it is resumed; and the same messages in Python."""

import json
import os
from pathlib import Path

import pytest

import convlora
from convlora.checkpoint import find_adapter
from convlora.config import make_config
from convlora.errors import ConfigError
from convlora.evaluation import evaluate_run
from convlora.merging import merge_run


def test_places_for_a_run(command, binary_data, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    own, gone = tmp_path / "own", tmp_path / "link"
    own.mkdir()
    (own / "config.yaml").write_text("epochs: 3")
    gone.symlink_to(tmp_path / "nothing")
    splits, other = tmp_path / "splits", tmp_path / "environment"
    for folder, name in ((splits, "split.json"), (other, "environment.json")):
        folder.mkdir()
        (folder / name).write_text('{"train": [1, 2]}')
    kept = tmp_path / "kept" / "best"
    kept.mkdir(parents=True)
    best = tmp_path / "other" / "best"
    best.mkdir(parents=True)
    (best / "adapter_config.json").write_text("{}")
    for out, message in (
        (best, "best holds a model already (adapter_config.json). Give another --out, outside of it."),
        (best / "new", f"new lies in {best}, which holds a model already"),  # the other run replaces best
        (file, "is a file, not a folder"),
        (file / "below", "is a file, not a folder"),
        (binary_data, "is inside the data folder"),
        (binary_data / "runs" / "a", "is inside the data folder"),
        (own, "config.yaml would be overwritten by the record of the run"),
        (splits, "split.json would be overwritten by the record of the run"),
        (other, "environment.json would be overwritten by the record of the run"),
        (kept.parent, "holds a run already (best)"),
        (gone, "is a link to nothing"),
    ):
        code, _, error = command("train", binary_data, "--out", out, "--max-steps", "1")
        assert (code, message in error) == (2, True), error
    assert (own / "config.yaml").read_text() == "epochs: 3"
    assert (splits / "split.json").read_text() == '{"train": [1, 2]}'
    assert not (binary_data / "runs").exists()
    with pytest.raises(ConfigError, match="best holds a model already"):
        convlora.compare(binary_data, best)
    with pytest.raises(ConfigError, match=r"new lies in .* which holds a model already"):
        merge_run(best, best / "new")
    code, _, error = command("pretrain", "--out", best)
    assert (code, "best holds a model already" in error) == (2, True), error


def test_data_inside_what_the_run_writes(command, tmp_path):
    (tmp_path / "best").mkdir()
    code, _, error = command("train", tmp_path / "best", "--out", tmp_path)
    assert code == 2
    assert "is where the run would write" in error
    assert (tmp_path / "best").is_dir()


def test_a_place_without_permission(command, binary_data, tmp_path, monkeypatch):
    monkeypatch.setattr("convlora.output.os.access", lambda path, mode: not mode & os.W_OK)
    code, _, error = command("train", binary_data, "--out", tmp_path / "run")
    assert code == 2
    assert f"{tmp_path} is not writable for you" in error


def test_classes_against_the_data_folder_are_told(command, three_class_data, small_backbone, tmp_path):
    start = ["--backbone", small_backbone, "--max-steps", "1", "--out", tmp_path / "run"]
    code, out, _ = command("train", three_class_data, *start, "--classes", "background,ball,bar")
    assert code == 0
    assert "classes: background, ball, bar count, as given; the data folder names background, disc" in out
    config = json.loads((tmp_path / "run" / "best" / "adapter_config.json").read_text())
    assert config["classes"] == ["background", "ball", "bar"]


def test_masks_of_a_head_that_binary_data_has_not(command, binary_data, small_backbone, tmp_path):
    settings = ["--set", "multiclass_head=mask-classification", "--set", "num_masks=4"]
    start = ["--backbone", small_backbone, "--max-steps", "1", "--out", tmp_path / "run"]
    code, out, _ = command("train", binary_data, *start, *settings)
    assert code == 0
    assert "num_masks and multiclass_head have no effect" in out


# --- resuming ---


def test_resume_reads_its_own_folder(command, binary_data, small_backbone, tmp_path, monkeypatch):
    out = tmp_path / "run"
    start = ["--backbone", small_backbone, "--max-steps", "1"]
    assert command("train", binary_data, "--out", out, *start)[0] == 0
    out.rename(tmp_path / "moved")
    monkeypatch.chdir(binary_data.parent)
    for arguments, message in (
        ([], "is finished"),  # another spelling of the same data, and a folder that moved, are no difference
        (
            ["--method", "lora"],
            "'gain': 8.0} in the run, {'name': 'lora'} now",
        ),
        (["--set", "method.rank=8"], "'rank': 8} now"),
        (["--seed", "3"], "seed: 0 in the run, 3 now"),
    ):
        resume = ("--out", tmp_path / "moved", "--resume", *arguments)
        code, _, error = command("train", binary_data.name, *resume)
        assert (code, message in error) == (2, True), error


def test_resume_from_another_working_folder(command, binary_data, small_backbone, tmp_path, monkeypatch):
    """Paths are recorded as absolute ones; a record of before, as typed, holds where the run was begun."""
    begun, other = tmp_path / "begun", tmp_path / "other"
    for folder in (begun, other / "deep"):
        folder.mkdir(parents=True)
    (begun / "data").symlink_to(binary_data)
    (begun / "backbone").symlink_to(small_backbone)
    monkeypatch.chdir(begun)
    start = ["--backbone", "backbone", "--max-steps", "1", "--set", "previews=0"]
    assert command("train", "data", "--out", "run", *start)[0] == 0
    record = begun / "run" / "config.yaml"
    text = record.read_text(encoding="utf-8")
    assert f"data: {begun}/data\n" in text
    assert f"backbone: {begun}/backbone\n" in text
    adapter = json.loads((begun / "run" / "best" / "adapter_config.json").read_text())
    assert adapter["backbone"] == f"{begun}/backbone"
    monkeypatch.chdir(other / "deep")
    resume = ("train", "../../begun/data", "--out", "../../begun/run", "--resume")
    for options in ((), ("--backbone", "../../begun/backbone")):
        code, _, error = command(*resume, *options)
        assert (code, "is finished" in error) == (2, True), error
    (begun / "palette.txt").write_text("0 0 0 background\n255 255 255 foreground\n")
    coloured = text.replace("palette: null", f"palette: {begun}/palette.txt")
    assert coloured != text
    record.write_text(coloured, encoding="utf-8")
    code, _, error = command(*resume, "--palette", "../../begun/palette.txt")
    assert (code, "was started with another configuration" in error) == (2, False), error
    monkeypatch.chdir(begun)
    record.write_text(text.replace(f"{begun}/", ""), encoding="utf-8")
    assert "data: data\n" in record.read_text(encoding="utf-8")
    for options in ((), ("--backbone", begun / "backbone")):
        code, _, error = command("train", begun / "data", "--out", "run", "--resume", *options)
        assert (code, "is finished" in error) == (2, True), error


def test_the_home_folder_is_written_out(command, binary_data, binary_adapter, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(binary_data)
    (tmp_path / "model").symlink_to(binary_adapter)
    config = make_config({key: f"~/{key}" for key in ("data", "out", "palette", "backbone")})
    assert (config.data, config.out) == (tmp_path / "data", tmp_path / "out")
    assert (config.palette, config.backbone) == (tmp_path / "palette", str(tmp_path / "backbone"))
    assert make_config({"data": "~nobody-here/x", "out": Path("~/x")}).data == Path("~nobody-here/x")
    assert find_adapter("~/model") == tmp_path / "model"
    with pytest.raises(ConfigError, match="split is 'tset'"):
        evaluate_run("~/model", Path("~/data"), "tset")
    scores = evaluate_run("~/model", Path("~/data"), "val")
    assert scores["n_images"] == 4
    assert command("info", "~/model")[0] == 0
    assert command("check", "~/data")[0] == 0
    images = "~/data/test/images"
    assert command("predict", "~/model", images, "--out=~/masks")[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "masks", "model"]


def test_python_has_the_same_messages(binary_data, tmp_path):
    with pytest.raises(ConfigError, match=r"'epoch' is no key\. Did you mean 'epochs'"):
        convlora.train(binary_data, tmp_path / "run", epoch=3)
    with pytest.raises(ConfigError, match="out: it is not given"):
        convlora.train(binary_data, None)
    with pytest.raises(ConfigError, match="data: got 3; it must be a path"):
        convlora.train(3, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"Unknown method: 'convlora'\. Did you mean 'conv-lora'"):
        convlora.train(binary_data, tmp_path / "run", method="convlora")
    with pytest.raises(ConfigError, match="is inside the data folder"):
        convlora.train(binary_data, binary_data / "run")
    for call in (lambda: convlora.load(None), lambda: convlora.evaluate(None, binary_data)):
        with pytest.raises(ConfigError, match="run is None; it must be a path"):
            call()
    with pytest.raises(ConfigError, match="precision is 'half'; it must be one of auto, fp32"):
        convlora.load("nowhere", precision="half")
    with pytest.raises(ConfigError, match="device is 'gpu'; it must be cpu, cuda"):
        convlora.load("nowhere", device="gpu")
