"""Where a run may be written, what is told of it, how it is resumed; and the same messages in Python."""

import json
import os

import pytest

import convlora
from convlora.errors import ConfigError


def test_places_for_a_run(command, binary_data, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    own, gone = tmp_path / "own", tmp_path / "link"
    own.mkdir()
    (own / "config.yaml").write_text("epochs: 3")
    gone.symlink_to(tmp_path / "nothing")
    kept = tmp_path / "kept" / "best"
    kept.mkdir(parents=True)
    for out, message in (
        (file, "is a file, not a folder"),
        (file / "below", "is a file, not a folder"),
        (binary_data, "is inside the data folder"),
        (binary_data / "runs" / "a", "is inside the data folder"),
        (own, "would be overwritten by the record of the run"),
        (kept.parent, "holds a run already (best)"),
        (gone, "is a link to nothing"),
    ):
        code, _, error = command("train", binary_data, "--out", out, "--max-steps", "1")
        assert (code, message in error) == (2, True), error
    assert (own / "config.yaml").read_text() == "epochs: 3"
    assert not (binary_data / "runs").exists()


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
