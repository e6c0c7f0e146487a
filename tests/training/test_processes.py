"""Two processes train as one: same global batch, same weights, no image scored twice."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from step_cases import CASES, METHODS, adapted, batches, gradients, segmenter

from convlora.adapters import trainable_parameters
from convlora.config import make_config
from convlora.data.check import check_dataset
from convlora.embedding_store import cache_folder
from convlora.errors import ConfigError
from convlora.training import fit as fit_module
from convlora.training import processes as processes_module
from convlora.training.fit import fit
from convlora.training.objective import make_objective
from convlora.training.processes import check_launcher_variables, meet
from convlora.training.report import Reporter
from convlora.training.validation import Validation

# --multi_gpu also without a GPU: with --cpu, accelerate starts one process whatever number is given
LAUNCH = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
LAUNCH += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
COMMON = {
    "max_steps": 4,
    "image_size": 64,
    "batch_size": 4,
    "precision": "fp32",
    "eval_every": 2,
    "previews": 0,
}


def launch(arguments, code=("-m", "convlora")):
    return subprocess.run(
        [*LAUNCH, *code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def train_by_two(data, backbone, out, values, resume=False):
    arguments = ["train", data, "--out", out, "--backbone", backbone, *(["--resume"] if resume else [])]
    for key, value in ({} if resume else {**COMMON, **values}).items():
        arguments += ["--set", f"{key}={json.dumps(value)}"]
    done = launch(arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parameters trained") == 1  # else each process trains alone
    assert "fp32 on cpu, 2 processes" in done.stdout
    assert done.stdout.count("Best: step") == 1


def train_by_one(data, backbone, out, values):
    fit(make_config({"data": data, "out": out, "backbone": str(backbone), **COMMON, **values}))


def log_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same_end(one, two, n_images=4):
    a, b = (load_file(run / "last" / "adapter_model.safetensors") for run in (one, two))
    for name in a:
        if name.endswith("k_proj.bias"):
            continue  # adds one constant to all logits of a query: its gradient is rounding noise alone
        # Adam divides by the root of the second moment, which enlarges the rounding of tiny gradients
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    rows = [json.loads((run / "metrics.json").read_text())["val"] for run in (one, two)]
    assert rows[0]["n_images"] == rows[1]["n_images"] == n_images
    for name, value in rows[0].items():
        if value is not None:
            assert abs(value - rows[1][name]) < 1e-3, name
    losses = [[row["loss"] for row in log_of(run) if "loss" in row] for run in (one, two)]
    assert len(losses[0]) == len(losses[1]) == 4
    # the loss of the whole batch, not of the first process's images, which is another by far more
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        # one process in one go against two that accumulate: means over pixels and classes must not notice
        ({"method": {"name": "conv-lora"}}, {"method": {"name": "conv-lora"}, "micro_batch": 1}),
        (
            {
                "method": {"name": "conv-lora", "top_k": 2},
                "multiclass_head": "mask-classification",
                "micro_batch": 2,
            },
            {"method": {"name": "conv-lora", "top_k": 2}, "multiclass_head": "mask-classification"},
        ),
    ],
    ids=["accumulation", "mask classification"],
)
def test_two_processes_are_one(one, two, three_class_data, small_backbone, tmp_path):
    """In the global block an image is one sample, so most of the eight experts get none in a process."""
    train_by_one(three_class_data, small_backbone, tmp_path / "one", one)
    train_by_two(three_class_data, small_backbone, tmp_path / "two", two)
    same_end(tmp_path / "one", tmp_path / "two")
    moved = load_file(tmp_path / "two" / "last" / "adapter_model.safetensors")
    assert moved["encoder.blocks.0.attn.qkv.lora_B"].abs().max() > 1e-3  # starts at zero: it was trained


def test_two_processes_go_on_where_one_stopped(binary_data, small_backbone, tmp_path, cut_off):
    """Nothing random hangs on a process; and three images over two processes are each scored once."""
    data = tmp_path / "data"
    (data / "train").parent.mkdir()
    for split in ("train", "val"):
        (data / split / "images").mkdir(parents=True)
        (data / split / "masks").mkdir()
        for image in sorted((binary_data / split / "images").iterdir())[: 3 if split == "val" else 8]:
            for kind in ("images", "masks"):
                (data / split / kind / image.name).write_bytes(
                    (binary_data / split / kind / image.name).read_bytes()
                )
    train_by_one(data, small_backbone, tmp_path / "whole", {})
    with cut_off(2):
        train_by_one(data, small_backbone, tmp_path / "run", {})
    train_by_two(data, small_backbone, tmp_path / "run", {}, resume=True)
    same_end(tmp_path / "whole", tmp_path / "run", n_images=3)


# --- scenes of one launch, see two_processes.py ---


@pytest.fixture(scope="module")
def scenes(small_backbone, binary_data, three_class_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    values = {**COMMON, "data": str(binary_data), "out": str(folder / "run"), "backbone": str(small_backbone)}
    (folder / "interrupted.json").write_text(json.dumps(values))
    untouched = {**values, "out": str(folder / "kept"), "method": "decoder-only"}
    (folder / "kept.json").write_text(json.dumps(untouched))
    script = Path(__file__).with_name("two_processes.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVLORA_CACHE", str(folder / "cache"))  # empty, whatever this worker ran before
        done = launch([folder, small_backbone, binary_data, three_class_data], code=(str(script),))
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_share_the_work_of_embeddings(scenes, small_backbone, binary_data, tmp_path):
    passes = [json.loads((scenes / f"passes{rank}.json").read_text()) for rank in range(2)]
    train_by_one(binary_data, small_backbone, tmp_path / "one", {"method": "decoder-only"})
    files = len(list(cache_folder().iterdir()))
    assert all(2 + 4 <= len(mine) <= 2 + 8 for mine in passes)  # half of the images, in one or two forms
    assert sum(map(sum, passes)) == files
    assert 8 < files - 4 <= 16
    same_end(tmp_path / "one", scenes / "kept")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are listed on Linux")
def test_a_finished_run_leaves_no_thread_of_the_connection(scenes):
    """One that is still at work when Python ends would abort it, and the launcher report a failure."""
    for rank in range(2):
        connected, after = json.loads((scenes / f"threads{rank}.json").read_text())
        assert connected > 0
        assert after == 0


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_two_processes_are_those_of_one_batch(name, scenes, small_backbone):
    AcceleratorState._reset_state()
    case, two = CASES[name], load_file(scenes / f"{name}.safetensors")
    model = segmenter(small_backbone, case)
    whole = {key: torch.cat([batch[key] for batch in batches(case)]) for key in ("image", "mask", "key")}
    loss = gradients(Accelerator(cpu=True), model, make_objective(model, case["loss"]), [whole], processes=1)
    torch.testing.assert_close(two.pop("loss"), loss)
    experts = two.pop("experts").flatten().tolist()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            # float32 sums over images and 4096 pixels in another order
            torch.testing.assert_close(
                two[key], parameter.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=key: f"{n}: {m}"
            )
    assert two["encoder.blocks.0.attn.qkv.gate.w_noise"].any()
    # the global block: an expert without a sample in one process, or in both; zero there, never None
    assert len(experts) == 4
    assert set(experts[:2]) - set(experts[2:])
    assert set(experts[2:]) - set(experts[:2])
    labelled = {experts[i] for i in (0, 1, 3)}  # the image between them is ignored
    for expert, gradient in enumerate(two["encoder.blocks.1.attn.qkv.experts.weight"]):
        assert bool(gradient.any()) == (expert in labelled)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_each_method_are_those_of_one_batch(name, scenes, small_backbone):
    AcceleratorState._reset_state()
    model = adapted(small_backbone, name)
    two = load_file(scenes / f"method {name}.safetensors")
    whole = {
        key: torch.cat([batch[key] for batch in batches(CASES["binary"])]) for key in ("image", "mask", "key")
    }
    loss = gradients(Accelerator(cpu=True), model, make_objective(model, "default"), [whole], processes=1)
    torch.testing.assert_close(two.pop("loss"), loss)
    assert two.keys() == trainable_parameters(model).keys()
    for key, parameter in trainable_parameters(model).items():
        # float32 sums over images and 4096 pixels in another order
        torch.testing.assert_close(
            two[key], parameter.grad, rtol=1e-3, atol=1e-5, msg=lambda m, n=key: f"{n}: {m}"
        )
        assert two[key].any() or key.endswith("k_proj.bias"), key


@pytest.mark.parametrize("count", [3, 1])
def test_scores_of_two_processes_are_those_of_one(count, scenes, small_backbone, three_class_data, tmp_path):
    AcceleratorState._reset_state()
    dataset = check_dataset(three_class_data).dataset
    dataset.splits["val"] = dataset.splits["val"][:count]
    values = {"data": three_class_data, "out": tmp_path, "backbone": str(small_backbone), "image_size": 64}
    config = make_config(values)
    model = fit_module._build(config, dataset)
    with Reporter(tmp_path, 1, config.metric, enabled=False) as reporter:
        one = Validation(config, dataset, model, Accelerator(cpu=True), reporter, "")._scores(1)
    assert one["n_images"] == count
    for rank in (0, 1):
        two = json.loads((scenes / f"scores{count}_{rank}.json").read_text())
        assert two.keys() == one.keys()
        # counts are the same; sums of at most three float64 are added in another order
        assert all(two[key] == pytest.approx(value, rel=1e-12, nan_ok=True) for key, value in one.items())
    pictures = [
        sorted(p.name for p in (out / "previews").iterdir())
        for out in (tmp_path, scenes / f"validated{count}")
    ]
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == count


def test_a_signal_to_one_process_ends_both_after_the_same_step(scenes, binary_data, small_backbone, tmp_path):
    assert (scenes / "interrupted0").exists()
    assert (scenes / "interrupted1").exists()
    assert max(row["step"] for row in log_of(scenes / "cut")) == 3
    train_by_one(binary_data, small_backbone, tmp_path / "whole", {})
    same_end(tmp_path / "whole", scenes / "run")
    # what two processes saved, one can go on with
    cut = make_config(json.loads((scenes / "interrupted.json").read_text()) | {"out": str(scenes / "cut")})
    fit(cut, resume=True)
    same_end(tmp_path / "whole", scenes / "cut")


def test_processes_that_see_other_data_stop(scenes):
    for rank in (0, 1):
        text = (scenes / f"disagree{rank}.txt").read_text()
        assert text.startswith("Process 1 differs from process 0 in: data. All processes must be given the")


def test_a_launcher_that_starts_one_process_for_several(binary_data, small_backbone, tmp_path, monkeypatch):
    """What `accelerate launch --cpu --num_processes 2` sets."""
    AcceleratorState._reset_state()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError, match=r"asked for several processes .* torchrun --nproc_per_node N -m"):
        train_by_one(binary_data, small_backbone, tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


FAILING = """
import os, sys
from convlora.data.dataset import SegmentationDataset
from convlora.errors import DataError
real, calls = SegmentationDataset.get, []
def get(self, index, epoch):
    calls.append(index)
    if os.environ["RANK"] == "1" and len(calls) > 2:
        raise DataError("x.png cannot be read. Replace it.")
    return real(self, index, epoch)
SegmentationDataset.get = get
from convlora.cli import main
main()
"""


def test_an_error_in_one_process_ends_all(binary_data, small_backbone, tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    arguments = [
        "train",
        binary_data,
        "--out",
        tmp_path / "run",
        "--backbone",
        small_backbone,
        "--max-steps",
        50,
    ]
    done = launch([*arguments, "--image-size", 64], code=(str(tmp_path / "failing.py"),))
    assert done.returncode != 0
    assert "error: x.png cannot be read. Replace it." in done.stderr


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharding_is_refused(name, binary_data, small_backbone, tmp_path, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(
        ConfigError, match=rf"asks for {name}, which convlora does not support.*--multi_gpu \(DDP\)"
    ):
        train_by_one(binary_data, small_backbone, tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


def test_other_commands_are_refused_under_a_launcher(binary_data, monkeypatch, capsys):
    from convlora.cli import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    for command in (["evaluate", "run", str(binary_data)], ["predict", "run", "x.png", "--out", "masks"]):
        monkeypatch.setattr(sys, "argv", ["convlora", *command])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 2
        message = f"'{command[0]}' runs in one process, and the launcher has started 2. Start it without"
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("value", ["", "x", "2"])
def test_a_world_size_without_a_launcher(value, command, binary_data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", value)
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    assert command("check", binary_data)[0] == 0
    wrong = f"The environment variable WORLD_SIZE is {value!r}; a launcher sets it to a whole number."
    if value == "2":
        wrong = "WORLD_SIZE is 2, but no launcher has set RANK, without which 2 processes cannot meet."
    for options in ([], ["--dry-run"]):
        code, _, error = command("train", binary_data, "--out", tmp_path / "run", *options)
        assert code == 2
        assert (
            f"{wrong} Please unset it, or start with a launcher (accelerate launch ..., or torchrun ...)."
            in error
        )
    assert not (tmp_path / "run").exists()


def test_launcher_variables_that_are_fine(monkeypatch):
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    check_launcher_variables()
    monkeypatch.setenv("WORLD_SIZE", "1")
    check_launcher_variables()
    for name, value in zip(names, ("2", "0", "0", "localhost", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    check_launcher_variables()
    monkeypatch.setenv("LOCAL_RANK", "")
    with pytest.raises(ConfigError, match="The environment variable LOCAL_RANK is ''"):
        check_launcher_variables()


@pytest.mark.parametrize(
    ("images", "previews", "count"), [(10, 3, 4), (2, 3, 2), (9, 0, 2), (5, 2, 1), (4, 3, 3)]
)
def test_images_are_shared_out_and_the_first_process_has_the_previews(images, previews, count):
    """It alone writes files, and the others may have no folder to write to."""
    pairs = list(range(images))
    mine = []
    for process in range(count):
        place = SimpleNamespace(num_processes=count, process_index=process, is_main_process=process == 0)
        run = SimpleNamespace(
            dataset=SimpleNamespace(splits={"val": pairs}),
            accelerator=place,
            config=SimpleNamespace(previews=previews),
        )
        mine.append(Validation.mine(run))
    assert sorted(pair for own in mine for pair in own) == pairs
    assert mine[0][:previews] == pairs[:previews]
    assert max(map(len, mine)) <= max(previews, -(-images // count))


def test_processes_wait_longer_for_each_other_than_nccl_does(monkeypatch):
    """Ten minutes, while one of them may compute embeddings that the others have."""
    asked = []
    monkeypatch.setattr(processes_module, "PartialState", lambda **options: asked.append(options))
    for size in ("1", "2"):
        monkeypatch.setenv("WORLD_SIZE", size)
        meet()
    assert asked == [{"cpu": True}, {"cpu": True, "timeout": timedelta(hours=3)}]
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "1")
    meet()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    meet()
    assert asked[2:] == [{"cpu": False}, {"cpu": True}]
