"""A run that was cut off ends in the same weights, bit for bit, as one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

import convlora
from convlora.config import make_config
from convlora.errors import ConfigError, WeightsError
from convlora.run_files import STATE, STATE_BEFORE
from convlora.training import fit as fit_module
from convlora.training.fit import fit
from convlora.training.lock import locked
from convlora.training.resume import check_made_with

STEPS = 8


def config(data, backbone, out, **changes):
    values = {
        "data": data,
        "out": out,
        "backbone": str(backbone),
        "max_steps": STEPS,
        "eval_every": 3,
        "image_size": 64,
        "previews": 0,
        "batch_size": 4,
        "micro_batch": 2,
        **changes,
    }
    return make_config(values)


@pytest.fixture(scope="module")
def whole(binary_data, small_backbone, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    fit(config(binary_data, small_backbone, out))
    return out


def same_end(one, other):
    for name in ("best", "last"):
        a, b = (load_file(run / name / "adapter_model.safetensors") for run in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    rows = [
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (one, other)
    ]
    losses = [[(row["step"], row["loss"]) for row in run if "loss" in row] for run in rows]
    assert losses[0] == losses[1]
    assert [step for step, _ in losses[0]] == list(range(1, STEPS + 1))
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, other)]
    assert metrics[0] == metrics[1]


class _CutOffError(Exception):
    pass


@pytest.mark.parametrize("step", [1, 3, 5, 7])
def test_cut_off_between_steps(whole, binary_data, small_backbone, tmp_path, monkeypatch, step):
    monkeypatch.setattr(fit_module, "_SAVE_SECONDS", 0.0)  # a state after every step
    real = fit_module._Run._after_step

    def cut(self, done):
        stop = real(self, done)
        if done == step:
            raise _CutOffError
        return stop

    run = config(binary_data, small_backbone, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(fit_module._Run, "_after_step", cut)
        with pytest.raises(_CutOffError):
            fit(run)
    torch.manual_seed(step)  # the end must not depend on what happened between
    fit(run, resume=True)
    same_end(whole, tmp_path / "run")


def test_killed_at_random_moments(whole, binary_data, small_backbone, tmp_path):
    """`kill -9` of a real process, mid-step, mid-validation or mid-save, until it gets through."""
    out = tmp_path / "run"
    arguments = [binary_data, "--out", out, "--backbone", small_backbone, "--max-steps", STEPS]
    arguments += ["--image-size", 64, "--batch-size", 4, "--micro-batch", 2]
    arguments += ["--set", "eval_every=3", "--set", "previews=0"]
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from convlora.training import fit; fit._SAVE_SECONDS = 0.0\n"
        "from convlora.cli import main; main()"
    )
    generator, kills = random.Random(0), 0
    for attempt in range(12):
        resume = ["--resume"] if (out / "config.yaml").exists() else []
        command = [sys.executable, "-c", code, "train", *map(str, arguments), *resume]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        started = (out / "metrics.jsonl").stat().st_mtime if (out / "metrics.jsonl").exists() else 0.0
        if attempt < 4 and _wait_for_a_step(process, out, started):
            time.sleep(generator.random() * 0.3)
            process.send_signal(signal.SIGKILL)
        _, error = process.communicate(timeout=300)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, error.decode()
        kills += 1
    assert process.returncode == 0
    assert kills >= 2
    same_end(whole, out)


def _wait_for_a_step(process, out, before):
    """Wait until the process has logged a step since `before`; False if it ended first."""
    file = out / "metrics.jsonl"
    while process.poll() is None:
        if file.exists() and file.stat().st_mtime > before and file.stat().st_size:
            return True
        time.sleep(0.01)
    return False


def test_interrupt_saves_and_says_how_to_go_on(
    whole, binary_data, small_backbone, tmp_path, monkeypatch, capsys
):
    real = fit_module.Loop._step

    def interrupted(self, batches):
        if self.done == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batches)

    run = config(binary_data, small_backbone, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(fit_module.Loop, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(run)
    assert f"--out {tmp_path / 'run'} --resume" in capsys.readouterr().out
    fit(run, resume=True)
    assert "resuming after step 5" in capsys.readouterr().out
    same_end(whole, tmp_path / "run")


def test_finished_run(whole, binary_data, small_backbone):
    with pytest.raises(ConfigError, match="is finished; there is nothing to resume"):
        fit(config(binary_data, small_backbone, whole), resume=True)


@pytest.fixture
def cut_run(binary_data, small_backbone, tmp_path, cut_off):
    """A run that ended after its first validation."""
    run = config(binary_data, small_backbone, tmp_path / "run")
    with cut_off(3):
        fit(run)
    return run


def test_the_scale_of_fp16_gradients_goes_on(binary_data, small_backbone, tmp_path, monkeypatch):
    """As on a GPU; here with a scaler of the CPU's, which grows at every second step."""

    def with_scaler(**arguments):
        accelerator = Accelerator(**arguments)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        return accelerator

    monkeypatch.setattr(fit_module, "Accelerator", with_scaler)
    monkeypatch.setattr(fit_module, "_SAVE_SECONDS", 0.0)
    real, reached = fit_module._Run._after_step, []

    def cut(self, done):
        reached.append(self.accelerator.scaler.get_scale())
        real(self, done)
        if done == 3 and len(reached) == 3:
            raise _CutOffError

    monkeypatch.setattr(fit_module._Run, "_after_step", cut)
    run = config(binary_data, small_backbone, tmp_path / "run")
    with pytest.raises(_CutOffError):
        fit(run)
    fit(run, resume=True)
    assert reached == [8.0, 16.0, 16.0, 32.0, 32.0, 64.0, 64.0, 128.0]


def test_half_written_state_is_not_used(whole, cut_run):
    (cut_run.out / f"{STATE}.part").write_bytes(b"half")
    fit(cut_run, resume=True)
    same_end(whole, cut_run.out)


@pytest.mark.parametrize("damage", ["cut off", "a bit flipped", "gone"])
def test_damaged_state_falls_back_to_the_one_before(whole, cut_run, cut_off, monkeypatch, capsys, damage):
    file = cut_run.out / STATE
    monkeypatch.setattr(fit_module, "_SAVE_SECONDS", 0.0)
    with cut_off(5):
        fit(cut_run, resume=True)
    content = bytearray(file.read_bytes())
    content[-1000] ^= 1
    damaged = {"cut off": bytes(content[:-50]), "a bit flipped": bytes(content), "gone": None}[damage]
    file.unlink() if damaged is None else file.write_bytes(damaged)
    capsys.readouterr()
    fit(cut_run, resume=True)
    said = capsys.readouterr().out
    assert "resuming after step 4" in said
    assert ("state.safetensors is damaged" in said) == (damage != "gone")
    same_end(whole, cut_run.out)


def test_all_states_damaged(cut_run):
    for name in (STATE, STATE_BEFORE):
        (cut_run.out / name).write_bytes(b"half")
    with pytest.raises(
        WeightsError, match=r"(?s)state\.safetensors is damaged.*previous.*damaged.*start the run anew"
    ):
        fit(cut_run, resume=True)


def test_data_that_changed_since(cut_run, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(cut_run.data, data)
    mask = next((data / "train" / "masks").iterdir())
    Image.fromarray(1 - np.asarray(Image.open(mask))).save(mask)
    with pytest.raises(ConfigError, match=r"The data changed since the run .* Put it back"):
        fit(cut_run.model_copy(update={"data": data}), resume=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"backbone": "x"}, r"The backbone changed since the run in out .* \(fingerprint b then, x now"),
        ({"data": "x", "backbone": "y"}, r"The data and the backbone changed .* \(fingerprint a then, x now"),
    ],
)
def test_what_must_be_the_same_when_a_run_is_resumed(changed, message):
    saved = {"data": "a", "backbone": "b", "torch": "2.6"}
    assert check_made_with(saved, dict(saved), Path("out")) == []
    with pytest.raises(ConfigError, match=message):
        check_made_with(saved, saved | changed, Path("out"))


def test_other_versions_are_told(whole, cut_run, monkeypatch, capsys):
    monkeypatch.setattr(fit_module, "__version__", "9.9")
    fit(cut_run, resume=True)
    assert "and is 9.9 now: the run goes on, but not bit for bit" in capsys.readouterr().out
    same_end(whole, cut_run.out)


def test_sigterm_is_as_ctrl_c(whole, binary_data, small_backbone, tmp_path, monkeypatch, capsys):
    run = config(binary_data, small_backbone, tmp_path / "my run")
    real = fit_module.Loop._step
    before = signal.getsignal(signal.SIGTERM)  # a library of an earlier test may have put its own there

    def terminated(self, batches):
        if self.done == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module.Loop, "_step", terminated)
        with pytest.raises(KeyboardInterrupt):
            fit(run)
    assert f"--out '{run.out}' --resume" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before
    fit(run, resume=True)
    same_end(whole, run.out)


@pytest.mark.parametrize(
    ("recorded", "told"),
    [
        ('{"command": ["/bin/convlora", "train", "my data"]}', "convlora train 'my data'"),
        ('{"command": null}', None),  # from Python
        ('{"command": [3]}', None),
        ("{", None),
        (None, None),
    ],
)
def test_the_model_card_names_the_command_that_started_the_run(cut_run, recorded, told):
    """A run is not failed for a line of its model card."""
    file = cut_run.out / "environment.json"
    file.unlink()
    if recorded is not None:
        file.write_text(recorded)
    fit(cut_run, True, ["convlora", "train", "--resume"])
    content = json.loads((cut_run.out / "last" / "adapter_config.json").read_text())
    assert content["training"]["command"] == told


def test_the_command_is_recorded(binary_data, small_backbone, tmp_path):
    run = config(binary_data, small_backbone, tmp_path / "run")
    fit(run, command=["/bin/convlora", "train", "x"])
    assert json.loads((run.out / "environment.json").read_text())["command"][1:] == ["train", "x"]
    content = json.loads((run.out / "last" / "adapter_config.json").read_text())
    assert content["training"]["command"] == "convlora train x"


# --- one run at a time ---


def test_two_runs_in_one_folder(cut_run):
    with (
        locked(cut_run.out),
        pytest.raises(ConfigError, match=r"written by another run, which holds .*\.lock\. Wait for it, stop"),
    ):
        fit(cut_run, resume=True)
    fit(cut_run, resume=True)


def test_a_lock_goes_with_its_process(tmp_path):
    """And not before: not for its age, nor because its file looks unfinished."""
    code = (
        "import sys, time, pathlib; from convlora.training.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="is being written by another run"), locked(tmp_path):
            pass
        (tmp_path / ".lock").write_text("")
        with pytest.raises(ConfigError, match="is being written by another run"), locked(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with locked(tmp_path):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def acquire(self, **_):
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with locked(tmp_path):
        assert (tmp_path / ".lock").exists()
        with pytest.raises(ConfigError, match="is being written by another run"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_state_of_another_model(cut_run):
    other = cut_run.model_copy(update={"method": {"name": "conv-lora", "rank": 5}})
    with pytest.raises(WeightsError, match=r"does not belong to this model: .*lora_A"):
        fit(other, resume=True)


def test_full_disk_keeps_the_last_state(cut_run, monkeypatch):
    before = (cut_run.out / STATE).read_bytes()

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("convlora.state_file.save_file", full)
    with pytest.raises(WeightsError, match=r"(?s)cannot be written: .*No space left.*make room"):
        fit(cut_run, resume=True)
    assert (cut_run.out / STATE).read_bytes() == before


def test_resumed_in_python(whole, binary_data, small_backbone, tmp_path, monkeypatch, cut_off):
    """The same call with resume=True, or no option at all; other options are refused."""
    monkeypatch.setattr(fit_module, "_SAVE_SECONDS", 0.0)
    asked = config(binary_data, small_backbone, tmp_path / "run").model_dump(exclude_defaults=True)
    data, out = asked.pop("data"), asked.pop("out")
    with pytest.raises(ConfigError, match=r"there is no run to resume\. Start it without .* resume="):
        convlora.train(data, out, resume=True, **asked)
    with cut_off(2):
        convlora.train(data, out, **asked)
    with pytest.raises(ConfigError, match=r"Go on with it with --resume \(in Python resume=True\)"):
        convlora.train(data, out, **asked)
    with pytest.raises(ConfigError, match=r"(?s)another configuration:.*lr: .* in the run, 0\.5 now"):
        convlora.train(data, out, resume=True, lr=0.5)
    with cut_off(5):
        convlora.train(data, out, resume=True)
    convlora.train(str(data), str(out), resume=True, **asked)
    same_end(whole, out)
