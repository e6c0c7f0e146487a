"""A comparison from images to tables: complete, the same twice, gone on with, and honest about failures."""

import csv
import json
import shutil
import sys

import pytest

import convlora
from convlora.comparison import launch
from convlora.comparison.settings import make_settings
from convlora.data.images import read_image
from convlora.errors import ConfigError
from convlora.training.lock import locked
from small import write_table


def scores(out):
    content = json.loads((out / "results.json").read_text())
    return {run["run"]: run["scores"] for run in content["runs"] if "scores" in run}


def test_a_whole_comparison(call, in_process, tmp_path, binary_data):
    out = tmp_path / "out"
    arguments = ("--methods", "lora,decoder-only,lora:rank=2", "--seeds", "2", "--train-sizes", "3,all")
    code, text, error = call(*arguments)
    assert (code, error) == (0, "")
    assert len(in_process) == 12
    for part in (
        "[12/12]",
        "3 training images",
        "all training images",
        "lora:rank=2",
        "(95 % CI)",
        "results.md",
    ):
        assert part in text
    content = json.loads((out / "results.json").read_text())
    assert len(content["rows"]) == 6
    row = content["rows"][1]
    assert row["label"] == "decoder-only"
    assert row["scores"]["mean_iou"]["n"] == 2
    assert row["differences"]["mean_iou"]["low"] < row["differences"]["mean_iou"]["high"]
    assert content["rows"][0]["differences"]["mean_iou"] is None
    assert 0 < row["trained_parameters"] < content["rows"][0]["trained_parameters"]
    assert all(each["trained_parameters"] < each["all_parameters"] for each in content["rows"])
    assert row["peak_memory_mib"] > 50
    assert row["adapter_bytes"] > 4 * row["trained_parameters"]
    assert row["step_seconds"] > 0
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["train_images"] for r in rows] == ["3"] * 6 + ["all"] * 6
    first = content["runs"][0]
    assert float(rows[0]["mean_iou"]) == first["scores"]["mean_iou"]
    # each method sees its images changed in the same way
    for name in ("lora-n3-seed1", "decoder-only-n3-seed1"):
        assert "augment: flip" in (out / "runs" / name / "run" / "config.yaml").read_text()
    markdown = (out / "results.md").read_text()
    assert markdown.count("| lora:rank=2 |") == 2
    assert "seeds: 0, 1. Scores" in markdown
    assert "with other images than these 4 is not in it" in markdown
    for name in ("parameters.png", "train_sizes.png", "predictions.png"):
        assert read_image(out / name).shape[1] > 500
    split = json.loads((out / "runs" / "lora-n3-seed1" / "run" / "split.json").read_text())
    assert (len(split["train"]), len(split["unused"])) == (3, 5)
    # and the same images
    others = json.loads((out / "runs" / "decoder-only-n3-seed1" / "run" / "split.json").read_text())
    assert others == split

    # again: nothing is run, a method is added, and one seed more
    before = scores(out)
    in_process.clear()
    code, text, _ = call(
        "--methods", "lora,decoder-only,lora:rank=2,bitfit", "--seeds", "3", "--train-sizes", "3"
    )
    assert code == 0
    assert "6 of 12 runs are done already" in text
    assert set(in_process) == {"bitfit-n3-seed0", "bitfit-n3-seed1", "bitfit-n3-seed2"} | {
        f"{name}-n3-seed2" for name in ("lora", "decoder-only", "lora_rank=2-" + _digest(before))
    }
    after = scores(out)
    assert {name: after[name] for name in after if name in before} == {
        name: before[name] for name in after if name in before
    }

    # another folder, the same numbers
    code, _, _ = call("--methods", "lora", "--seeds", "1", "--train-sizes", "3", out=tmp_path / "twice")
    assert scores(tmp_path / "twice")["lora-n3-seed0"] == before["lora-n3-seed0"]
    assert before["lora-n3-seed0"] != before["lora-n3-seed1"]


def _digest(names):
    return next(name for name in names if name.startswith("lora_rank")).split("-")[1]


def test_learning_rates_are_chosen_once(call, in_process, tmp_path):
    arguments = ("--methods", "lora,bitfit", "--seeds", "1", "--tune-lr")
    code, text, _ = call(*arguments)
    assert code == 0
    assert "lora: learning rate" in text
    tried = [f"{m}-seed1000000-lr{rate}" for rate in ("0.001", "0.003", "0.0003") for m in ("lora", "bitfit")]
    assert in_process == [*tried, "lora-seed0", "bitfit-seed0"]  # one that is cut off is fair at each moment
    rates = json.loads((tmp_path / "out" / "learning_rates.json").read_text())
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["rows"][0]["lr"] == rates["lora"] == content["runs"][0]["lr"]
    config = (tmp_path / "out" / "runs" / "lora-seed0" / "run" / "config.yaml").read_text()
    assert f"lr: {rates['lora']}" in config
    in_process.clear()
    call(*arguments)
    assert in_process == []
    (tmp_path / "out" / "learning_rates.json").write_text("[")
    code, _, error = call(*arguments)
    assert (code, "learning_rates.json is damaged" in error) == (2, True)
    # the best by validation, not by chance: change one result and choose anew
    (tmp_path / "out" / "learning_rates.json").unlink()
    folder = next((tmp_path / "out" / "runs").glob("lora-seed1000000-lr0.003*"))
    result = json.loads((folder / "result.json").read_text())
    result["validation"]["mean_dice_foreground"] = 2.0
    (folder / "result.json").write_text(json.dumps(result))
    shutil.rmtree(tmp_path / "out" / "runs" / "lora-seed0")
    assert "learning rate 0.003" in call(*arguments)[1]


def test_a_rate_that_was_chosen_from_fewer_runs_is_told(call, in_process, tmp_path, monkeypatch):
    run = launch.run_task

    def fail(task):
        if task.cell.lr != 0.003:
            return run(task)
        task.write()
        result = {"digest": task.digest, "error": "killed by signal 9", "log": "log"}
        (task.folder / "result.json").write_text(json.dumps(result))
        return result

    monkeypatch.setattr(launch, "run_task", fail)
    for _ in range(2):  # the second call finds what the first has chosen
        code, text, _ = call("--methods", "decoder-only", "--seeds", "1", "--tune-lr")
        assert code == 0
        markdown = (tmp_path / "out" / "results.md").read_text()
        assert "from fewer runs\n\n- decoder-only-seed1000000-lr0.003: killed by signal 9" in markdown
        assert "To choose anew: delete learning_rates.json and" in markdown
        tuning = json.loads((tmp_path / "out" / "results.json").read_text())["tuning"]
        assert [("error" in run, run["lr"]) for run in tuning] == [
            (False, 0.001),
            (True, 0.003),
            (False, 3e-4),
        ]
        assert tuning[0]["validation"]["mean_iou"] > 0
    assert "of 2 that were reached" not in text


def test_that_a_seed_made_the_splits_is_told(command, small_backbone, in_process, tmp_path):
    data = write_table(tmp_path / "data", split=False, count=6)
    arguments = (
        "--out",
        tmp_path / "out",
        "--backbone",
        small_backbone,
        "--max-steps",
        "1",
        "--image-size",
        "64",
    )
    code, text, _ = command("compare", data, *arguments, "--methods", "decoder-only", "--seeds", "1")
    assert code == 0
    assert "note: splits: made here by seed 0, image by image" in text


def test_a_method_of_which_no_rate_could_be_tried_waits(call, in_process, tmp_path, monkeypatch):
    """With the default rate it would stand untuned beside tuned ones, and in the way of its tuned runs."""

    def fail(task):
        assert task.cell.tuning
        return {"digest": task.digest, "error": "the machine is gone", "log": "log"}

    arguments = ("--methods", "decoder-only", "--seeds", "1", "--tune-lr")
    with monkeypatch.context() as away:
        away.setattr(launch, "run_task", fail)
        code, text, _ = call(*arguments)
    assert (code, "decoder-only (1 failed)" in text) == (1, True)
    assert "decoder-only-seed0: not run, because" in (tmp_path / "out" / "results.md").read_text()
    code, text, _ = call(*arguments)
    assert (code, "FAILED" in text) == (0, False)
    assert len(in_process) == 4


def test_a_failed_run_is_told_and_the_rest_go_on(call, in_process, tmp_path):
    arguments = ("--methods", "lora:rank=9999,lora,decoder-only", "--seeds", "1", "--reference", "lora")
    code, text, _ = call(*arguments)
    assert code == 1
    assert "FAILED: rank is 9999" in text
    assert "lora:rank=9999 (1 failed)" in text
    markdown = (tmp_path / "out" / "results.md").read_text()
    assert "## Runs that failed" in markdown
    assert len(scores(tmp_path / "out")) == 2
    in_process.clear()
    call(*arguments)
    assert len(in_process) == 1  # what failed is tried again


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "lroa"), "there is no method 'lroa'"),
        (("--train-sizes", "999"), "--train-sizes names 999, but there are 8 training images"),
        (("--metrics", "mean_iuo"), "metric 'mean_iuo' is not computed here"),
        (("--seeds", "0"), "'--seeds'"),
        (("--set", "lr=-1"), "lr (--set lr): got -1"),
        (("--config", "nowhere.yaml"), "nowhere.yaml does not exist"),
        (("--reference", "x"), "--reference is x"),
    ],
)
def test_mistakes_show_before_the_first_run(call, in_process, tmp_path, arguments, message):
    code, _, error = call(*arguments)
    assert code == 2
    assert message in error
    assert in_process == []
    assert not (tmp_path / "out").exists()


def test_another_comparison_in_the_folder(call, in_process, command, binary_data, tmp_path, small_backbone):
    call("--methods", "lora", "--seeds", "1")
    out, backbone = tmp_path / "out", ("--backbone", small_backbone)
    code, _, error = command(
        "compare", binary_data, "--out", out, *backbone, "--max-steps", "3", "--methods", "lora"
    )
    assert code == 2
    assert "max_steps: 2 there, 3 now" in error
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.txt").write_text("")
    code, _, error = call("--methods", "lora", out=tmp_path / "other")
    assert (code, "holds files that are no comparison" in error) == (2, True)
    (out / "comparison.json").write_text("{")
    code, _, error = call("--methods", "lora")
    assert (code, "comparison.json is damaged" in error) == (2, True)


def test_two_processes_in_one_folder(call, in_process, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out"):
        code, _, error = call("--methods", "lora", "--seeds", "1")
    assert (code, "out is being written by another run" in error) == (2, True)
    assert in_process == []
    assert [file.name for file in (tmp_path / "out").iterdir()] == [".lock"]


def test_a_launcher_is_refused_in_python_too(in_process, binary_data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConfigError, match="'compare' runs in one process, and the launcher has started 2"):
        convlora.compare(binary_data, tmp_path / "out", "decoder-only")
    assert not (tmp_path / "out").exists()


def test_thin_areas_are_told_before_the_first_run(call, in_process, monkeypatch, tmp_path):
    """The runs say so in their own logs alone."""
    monkeypatch.setattr("convlora.training.notes._THIN", 9.0)  # the discs are thick
    code, text, error = call("--methods", "decoder-only", "--seeds", "1")
    assert (code, error) == (0, "")
    first, _, _ = text.partition("\n")
    assert first.startswith("note: thin areas, in cells of the predicted masks (32 x 32 for an image): ")
    assert "compare --methods conv-lora,unet tells whether" in first
    _, text, _ = call("--methods", "decoder-only,unet", "--seeds", "1", out=tmp_path / "both")
    first, _, _ = text.partition("\n")
    assert first.startswith("note: thin areas")
    assert first.endswith("predict --tile.")  # a U-Net is compared, so none is advised
    _, text, _ = call("--methods", "unet", "--seeds", "1", out=tmp_path / "unet")
    assert "thin areas" not in text  # it predicts every pixel of its input


def test_pictures_need_matplotlib(call, in_process, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, error = call("--methods", "lora")
    assert code == 2
    assert "pip install 'convlora[compare]'" in error
    assert not (tmp_path / "out").exists()


def test_from_python(in_process, binary_data, small_backbone, tmp_path):
    found = convlora.compare(
        binary_data,
        tmp_path / "out",
        "decoder-only",
        seeds=1,
        backbone=str(small_backbone),
        max_steps=2,
        image_size=64,
        previews=0,
    )
    assert found["rows"][0]["label"] == "decoder-only"
    assert found["runs"][0]["scores"]["n_images"] == 4
    assert in_process == ["decoder-only-seed0"]


def test_a_size_that_is_all_and_sizes_in_any_order(call, in_process, tmp_path):
    """All eight images under two names; the picture of predictions is of the most images."""
    code, text, _ = call("--methods", "decoder-only", "--seeds", "2", "--train-sizes", "all,8,3")
    assert code == 0, text
    assert read_image(tmp_path / "out" / "train_sizes.png").shape[1] > 500
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["rows"][0]["scores"] == content["rows"][1]["scores"]
    # as on a device whose sums are not always the same
    file = tmp_path / "out" / "runs" / "decoder-only-n8-seed0" / "result.json"
    result = json.loads(file.read_text())
    result["scores"]["mean_dice_foreground"] += 0.01
    file.write_text(json.dumps(result))
    assert call("--methods", "decoder-only", "--seeds", "2", "--train-sizes", "all,8,3")[0] == 0
    assert make_settings("lora", train_sizes="all,8,3").largest is None
    assert make_settings("lora", train_sizes="3,16,8").largest == 16


def test_a_comparison_inside_the_data(call, in_process, binary_data):
    code, _, error = call("--methods", "lora", out=binary_data / "comparison")
    assert (code, "is inside the data folder" in error) == (2, True)
    assert not (binary_data / "comparison").exists()
