"""A resumed run may change what the weights do not depend on; it says so, and config.yaml tells it after."""

import json

import pytest
import torch
from safetensors.torch import load_file

from convlora.config import load_config

STEPS = 4


@pytest.fixture
def train(command, binary_data, small_backbone):
    def run(out, *arguments):
        common = ["--backbone", small_backbone, "--max-steps", STEPS, "--image-size", 64, "--batch-size", 4]
        common += ["--set", "eval_every=2"]
        return command("train", binary_data, "--out", out, *common, *arguments)

    return run


@pytest.fixture
def cut_run(train, tmp_path, cut_off):
    """Options of a run that was cut off after two of its four steps -> its folder."""

    def make(*arguments):
        with cut_off(2):
            train(tmp_path / "run", *arguments)
        return tmp_path / "run"

    return make


def weights(run):
    return load_file(run / "last" / "adapter_model.safetensors")


def losses(run):
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def test_what_changes_is_told_and_recorded(train, cut_run, tmp_path):
    assert train(tmp_path / "whole", "--set", "previews=0", "--micro-batch", 4)[0] == 0
    out = cut_run("--set", "previews=0", "--micro-batch", 4)
    before = load_config(out / "config.yaml")
    code, text, error = train(
        out, "--resume", "--micro-batch", 1, "--checkpointing", "--set", "workers=1", "--set", "previews=1"
    )
    assert (code, error) == (0, "")
    assert "warning: micro_batch was 4 before, and is 1 now: the run goes on, but not bit for bit as" in text
    for told in ("checkpointing was False", "workers was 0", "previews was 0"):
        assert f"note: {told} before, and is {'True' if 'check' in told else 1} now: the weights do" in text
    changes = {"micro_batch": 1, "checkpointing": True, "workers": 1, "previews": 1}
    assert load_config(out / "config.yaml") == before.model_copy(update=changes)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"step": 2, **changes} in rows
    assert len(list((out / "previews").iterdir())) == 1
    assert losses(out) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
    whole = weights(tmp_path / "whole")
    for name, value in weights(out).items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-4)  # a tenth of a step


def test_checkpointing_alone_ends_in_the_same_bits(train, cut_run, tmp_path):
    assert train(tmp_path / "whole")[0] == 0
    out = cut_run()
    code, text, _ = train(out, "--resume", "--checkpointing")
    assert code == 0
    assert "warning" not in text
    whole = weights(tmp_path / "whole")
    assert all(torch.equal(value, whole[name]) for name, value in weights(out).items())


def test_a_run_that_changed_goes_on_as_it_is_recorded(train, cut_run, monkeypatch):
    out = cut_run("--micro-batch", 4)
    recorded = out / "config.yaml"
    recorded.write_text(recorded.read_text().replace("micro_batch: 4", "micro_batch: 2"))
    before = recorded.read_bytes()
    code, text, _ = train(out, "--resume")
    assert code == 0
    assert "micro_batch was" not in text
    assert recorded.read_bytes() == before


def test_what_may_not_change_is_refused_with_what_may(train, cut_run):
    out = cut_run("--micro-batch", 4)
    before = (out / "config.yaml").read_bytes()
    code, _, error = train(out, "--resume", "--micro-batch", 1, "--precision", "bf16")
    assert code == 2
    assert "precision: auto in the run, bf16 now" in error
    assert "micro_batch: " not in error
    assert "Only micro_batch, checkpointing, workers and previews may change." in error
    code, _, error = train(out, "--resume", "--micro-batch", 3)
    assert code == 2
    assert "micro_batch is 3; it must divide the 4 images" in error
    assert (out / "config.yaml").read_bytes() == before


def test_a_finished_run_keeps_its_record(train, tmp_path):
    train(tmp_path / "run", "--micro-batch", 4)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    code, _, error = train(tmp_path / "run", "--resume", "--micro-batch", 1)
    assert code == 2
    assert "is finished; there is nothing to resume" in error
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
