"""Two processes train as one: same global batch, same weights, no image scored twice."""

import json
import os
import subprocess
import sys

import torch
from safetensors.torch import load_file

SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from convlora.cli import main
main()
"""


def train(data, backbone, out, processes):
    (out.parent / "script.py").write_text(SCRIPT)
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    arguments = ["train", data, "--out", out, "--backbone", backbone, "--method", "lora", "--max-steps", 4]
    arguments += ["--image-size", 64, "--batch-size", 4, "--micro-batch", 1, "--precision", "fp32"]
    arguments += ["--set", "eval_every=2", "--set", "previews=0"]
    done = subprocess.run(
        [*launcher, str(out.parent / "script.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_are_one(three_class_data, small_backbone, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    train(three_class_data, small_backbone, one, 1)
    text = train(three_class_data, small_backbone, two, 2)
    assert text.count("parameters trained") == 1  # else each process trains alone
    a, b = (load_file(run / "last" / "adapter_model.safetensors") for run in (one, two))
    assert a["encoder.blocks.0.attn.qkv.lora_B"].abs().max() > 1e-4  # starts at zero: it was trained
    for name in a:
        # Adam divides by the root of the second moment, which enlarges the rounding of tiny gradients
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)
    metrics = [json.loads((run / "metrics.json").read_text())["val"] for run in (one, two)]
    assert metrics[0]["n_images"] == metrics[1]["n_images"] == 4
    for name, value in metrics[0].items():
        if value is not None:
            assert abs(value - metrics[1][name]) < 1e-3, name
