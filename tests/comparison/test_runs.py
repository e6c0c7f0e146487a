"""Single runs of a comparison: in their own process, cut off, and without memory."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from convlora.comparison import cell as cell_module
from convlora.comparison import launch
from convlora.comparison.cell import run_cell
from convlora.comparison.compare import compare
from convlora.comparison.launch import one_by_one, run_task
from convlora.comparison.settings import make_settings
from convlora.config import make_config
from convlora.data.images import read_image
from convlora.state_file import read_states
from convlora.training.out_of_memory import cannot_halve


def test_a_run_without_memory_is_told_what_a_comparison_can_do(tmp_path, monkeypatch, capsys):
    """Not what `train` advises: a run of a comparison cannot go on with other options."""

    def run(folder):
        raise cannot_halve(1, 1, "CUDA out of memory. Tried to allocate 2 GiB.", "bf16")

    monkeypatch.setattr(cell_module, "run_cell", run)
    monkeypatch.setattr(sys, "argv", ["cell", str(tmp_path)])
    (tmp_path / "cell.json").write_text('{"digest": "abc", "config": {"precision": "fp16"}}')
    with pytest.raises(SystemExit, match="2"):
        cell_module.main()
    said = json.loads((tmp_path / "result.json").read_text())["error"]
    assert said.startswith("Out of memory with 1 image at once (CUDA out of memory. Tried to allocate 2 ")
    assert "Leave the method out of --methods, or compare anew, in another --out, with --set mic" in said
    assert "--resume" not in said
    assert "--precision" not in said  # which takes least already
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_child_process(call, tmp_path, binary_data, monkeypatch):
    """The real thing: a process for each cell, one that dies, and one that is stopped."""
    tasks = []
    monkeypatch.setattr("convlora.comparison.compare.one_by_one", None)

    def engine(todo):
        tasks.extend(todo)
        return one_by_one(todo)

    monkeypatch.setattr("convlora.comparison.engines.one_by_one", engine)
    code, _, _ = call("--methods", "decoder-only", "--seeds", "1")
    assert code == 0
    (task,) = tasks
    result = json.loads((task.folder / "result.json").read_text())
    assert result["scores"]["n_images"] == 4
    assert sorted(p.name for p in (task.folder / "samples").iterdir())[0] == "test_00.png"
    table = (task.folder / "images.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in table] == ["image", *(f"test_{i:02}" for i in range(4))]
    sample = read_image(task.folder / "samples" / "test_00.png")
    assert sample.shape[:2] == read_image(binary_data / "test" / "images" / "test_00.png").shape[:2]
    environment = json.loads((task.folder / "run" / "environment.json").read_text())
    assert environment["command"][:2] == ["convlora", "train"]
    monkeypatch.setattr(launch, "_call", lambda *_: -9)
    task.folder.joinpath("result.json").unlink()
    assert run_task(task)["error"] == "killed by signal 9 (perhaps for want of memory)"
    monkeypatch.setattr(launch, "_call", lambda *_: 130)
    with pytest.raises(KeyboardInterrupt):
        run_task(task)
    content = json.loads((task.folder / "cell.json").read_text())
    (task.folder / "cell.json").write_text(json.dumps({**content, "digest": "another"}))
    assert "holds a run of another configuration" in run_task(task)["error"]


def test_a_cell_that_was_cut_off_goes_on(call, in_process, tmp_path, monkeypatch):
    call("--methods", "lora", "--seeds", "1")
    folder = tmp_path / "out" / "runs" / "lora-seed0"
    whole = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    monkeypatch.setattr(cell_module, "fit", lambda *_, **__: pytest.fail("the training was finished"))
    monkeypatch.setattr(sys, "argv", ["cell"])
    monkeypatch.setattr(cell_module, "_peak_memory", lambda: 1)  # of a process that only scores
    again = run_cell(folder)
    assert again["scores"] == whole["scores"]
    assert again["peak_memory_mib"] == whole["peak_memory_mib"]
    (folder / "peak_memory.json").unlink()  # killed between the training's end and that file
    assert run_cell(folder)["peak_memory_mib"] is None
    code, text, _ = call("--methods", "lora", "--seeds", "1")
    assert (code, "1 of 1 runs are done already" in text) == (0, True)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["rows"][0]["peak_memory_mib"] is None


def test_a_worker_in_another_folder_on_a_log_that_is_read_meanwhile(
    in_process, binary_data, small_backbone, tmp_path, monkeypatch
):
    """As on a cluster: relative paths are the user's, and standard output is a file."""
    elsewhere, log = tmp_path / "elsewhere", io.TextIOWrapper(io.BytesIO())
    elsewhere.mkdir()
    shutil.copytree(small_backbone, tmp_path / "backbone")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdout", log)
    told = []

    def engine(todo):
        for task in todo:
            told.append(log.buffer.getvalue().decode())
            with monkeypatch.context() as there:
                there.chdir(elsewhere)
                result = launch.run_task(task)
            yield task, result

    options = {"backbone": "backbone", "max_steps": 1, "image_size": 64, "previews": 0}
    config = make_config({"data": binary_data, "out": "out", **options})
    outcome = compare(config, make_settings("decoder-only", 2), engine)
    assert not outcome.failures
    assert not list(elsewhere.iterdir())
    assert (tmp_path / "out" / "runs" / "decoder-only-seed1" / "result.json").is_file()
    assert "[1/2] decoder-only-seed0" in told[1]


def test_ctrl_c_saves_and_the_same_command_goes_on(binary_data, small_backbone, tmp_path):
    """As in a terminal: the signal reaches the whole group, and the child saves before it ends."""
    out = tmp_path / "out"
    arguments = ["compare", binary_data, "--out", out, "--backbone", small_backbone, "--methods", "lora"]
    arguments += ["--seeds", "1", "--max-steps", "400", "--image-size", "64", "--set", "previews=0"]
    command = [sys.executable, "-c", "from convlora.cli import main; main()", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    process = subprocess.Popen(command, **pipes)
    log = out / "runs" / "lora-seed0" / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert (process.returncode, b"The same command goes on from here" in error) == (130, True), error
    state = next(read_states(log.parent))
    done = json.loads(state.header["progress"])["step"]
    assert 2 < done < 400
    assert not list((out / "runs" / "lora-seed0").glob("result.json"))
