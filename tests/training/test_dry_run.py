"""What --dry-run says, and the bytes it counts against those of a real step."""

import dataclasses
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from convlora.adapters import ConvLora, methods
from convlora.backbone.presets import BACKBONES
from convlora.backbone.sam import Sam
from convlora.cli import main
from convlora.config import make_config
from convlora.data.check import check_dataset
from convlora.data.splits import record_splits
from convlora.embedding_store import cache_folder
from convlora.errors import ConfigError, DataError
from convlora.model import Segmenter, SegmenterConfig
from convlora.presets import LEARNED_ROUTER
from convlora.training import dry_run as module
from convlora.training import fit as fit_module
from convlora.training.dry_run import dry_run
from convlora.training.fit import fit
from convlora.training.memory import (
    ACTIVATION_FACTORS,
    CPU_OVERHEAD,
    DEVICE_OVERHEAD,
    MIB,
    StepMemory,
    estimate_peak,
    simulate_step,
)
from small import SMALL, write_image, write_shapes, write_table


def segmenter_config(method="conv-lora", size=64, classes=2, head="binary"):
    names = tuple(f"class {i}" for i in range(classes))
    return SegmenterConfig("x", names, method, head=head, num_masks=max(10, classes), image_size=size)


def kept_by_a_real_forward(config, images, dtype):
    """Bytes of the storages that autograd keeps in a real forward pass, parameters left out."""
    model = Segmenter(Sam(SMALL), config).train()
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    image = torch.randn(images, 3, config.image_size, config.image_size)
    autocast = torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        out = model(image)
    assert out.mask_logits.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", methods())
def test_counted_bytes_are_those_that_a_real_step_keeps(method, dtype):
    config = segmenter_config(method, size=128)
    real = kept_by_a_real_forward(config, 2, dtype)
    counted = simulate_step(SMALL, config, 2, dtype).activations
    # on top of what the forward keeps there are the loss's maps and what a backward step holds for a moment
    loss = 10 * 2 * 128 * 128 * 4
    assert real < counted < 1.3 * real + loss


@pytest.mark.parametrize("head", ["per-class", "mask-classification"])
def test_it_plans_the_model_that_is_trained(three_class_data, small_backbone, tmp_path, monkeypatch, head):
    values = {"backbone": str(small_backbone), "method": {"name": "conv-lora", "rank": 2}, "image_size": 32}
    given = {"data": three_class_data, "out": tmp_path / "run", "multiclass_head": head, "resize": "pad"}
    config, planned = make_config(values | given), []
    real = module._count
    monkeypatch.setattr(module, "_count", lambda *a: (planned.append(a[1]), real(*a))[1])
    dry_run(config)
    built = fit_module._build(config, check_dataset(three_class_data).dataset).config
    assert dataclasses.replace(planned[0], backbone_fingerprint=built.backbone_fingerprint) == built
    assert (built.method_options["rank"], built.image_size, built.head) == (2, 32, head)


def test_counted_bytes_follow_batch_size_and_method():
    def activations(method="conv-lora", images=1, size=128, dtype=None):
        return simulate_step(SMALL, segmenter_config(method, size), images, dtype).activations

    assert activations(images=4) == pytest.approx(4 * activations(), rel=0.1)
    assert activations(size=256) > 3.5 * activations()
    assert activations(dtype=torch.bfloat16) < 0.9 * activations()
    # the small encoder's two blocks keep less than the decoder does: no N x N bias, no widened q, k and v
    assert activations("decoder-only") < 0.6 * activations("lora") < 0.6 * activations("full")


def test_ladder_side_tuning_keeps_no_activations_of_the_frozen_encoder():
    spec = BACKBONES["facebook/sam-vit-base"]
    kept = {
        method: simulate_step(spec, segmenter_config(method, size=256), 1, torch.bfloat16).activations
        for method in ("lora", "lst", "decoder-only")
    }
    assert kept["decoder-only"] < kept["lst"] < kept["lora"] / 3


def test_parameters_and_state():
    config = segmenter_config("lora")
    model = Segmenter(Sam(SMALL), config)
    step = simulate_step(SMALL, config, 1, None)
    buffers = sum(b.numel() * 4 for b in model.buffers())
    assert step.parameters == 4 * model.count_parameters().total + buffers
    assert step.state == 12 * model.count_parameters().trainable  # gradient, two moments


@pytest.mark.parametrize(("classes", "head"), [(5, "per-class"), (5, "mask-classification")])
def test_other_heads(classes, head):
    full = simulate_step(SMALL, segmenter_config(classes=classes, head=head), 1, None)
    half = simulate_step(SMALL, segmenter_config(classes=classes, head=head), 1, torch.bfloat16)
    assert full.activations > 0
    assert (full.half, half.half) == (False, True)


@pytest.mark.parametrize("half", [False, True])
def test_estimate_is_the_sum_of_its_parts(half):
    step = StepMemory(parameters=100, state=20, activations=1000, half=half)
    more = 120 + ACTIVATION_FACTORS[half] * 1000
    assert estimate_peak(step, "cpu", held=7, cached=3) == more + 10 + CPU_OVERHEAD
    assert estimate_peak(step, "cuda", held=7, cached=3) == more + DEVICE_OVERHEAD


def test_weights_are_read_in_fp32_whatever_the_precision(monkeypatch, binary_data, tmp_path):
    """ViT-H's frozen weights take half of the memory once they are rounded, and all of it before."""
    monkeypatch.setattr(module, "simulate_step", lambda *a: StepMemory(0, 0, 0, half=True))
    asked = {"backbone": "random:facebook/sam-vit-huge", "method": "decoder-only", "augment": "none"}
    found = dry_run(make_config({"data": binary_data, "out": tmp_path / "run", **asked}))
    assert found.memory_mib > 4 * found.all_parameters / MIB > 2000
    loaded = 10 * CPU_OVERHEAD
    assert estimate_peak(found.step, "cpu", held=7, loaded=loaded) == 7 + loaded
    assert estimate_peak(found.step, "cuda", held=7, loaded=loaded) == DEVICE_OVERHEAD


def test_validation_holds_four_maps_of_the_largest_image(monkeypatch, binary_data, small_backbone, tmp_path):
    """Scores are taken at native size: of a large image that is more than a step takes. In bytes here."""
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=1000))
    monkeypatch.setattr(module.psutil, "Process", lambda: process)
    monkeypatch.setattr(module, "simulate_step", lambda *a: StepMemory(7, 0, 0, half=False))
    monkeypatch.setattr(module, "estimate_peak", lambda *a, **k: 0)
    monkeypatch.setattr(module, "MIB", 1)
    places = {"data": binary_data, "out": tmp_path / "run", "backbone": str(small_backbone)}
    assert dry_run(make_config(places)).memory_mib == 7 + 1000 + 4 * 2 * (48 * 64) * 4


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["convlora", "train", *map(str, arguments), "--dry-run"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code in {None, 0}
    return capsys.readouterr().out


def test_prints_what_will_happen_and_writes_nothing(
    three_class_data, small_backbone, tmp_path, monkeypatch, capsys
):
    arguments = [
        three_class_data,
        "--out",
        tmp_path / "run",
        "--backbone",
        small_backbone,
        "--precision",
        "fp32",
    ]
    said = run(monkeypatch, capsys, *arguments, "--max-steps", 10, "--micro-batch", 2)
    for part in (
        "images: 4 test, 8 train, 4 val",
        "background",
        "disc",
        "conv-lora on",
        "parameters trained",
        "encoder ",
        "mask decoder ",
        "input: 64 px, fp32 on cpu",
        "steps: 10 of 4 images (5.0 epochs), 2 at once on each of 1 process",
        "MiB at its peak",
        ": fits",
        "Nothing was trained or written.",
    ):
        assert part in said.replace("8 train, 4 val, 4 test", "4 test, 8 train, 4 val"), part
    assert not (tmp_path / "run").exists()


def test_json(binary_data, small_backbone, tmp_path, monkeypatch, capsys):
    said = run(
        monkeypatch, capsys, binary_data, "--out", tmp_path / "r", "--backbone", small_backbone, "--json"
    )
    found = json.loads(said)
    config = make_config({"data": binary_data, "out": tmp_path / "r", "backbone": str(small_backbone)})
    assert found == json.loads(
        json.dumps(dry_run(config).to_dict() | {k: found[k] for k in ("free_mib", "memory_mib")})
    )
    assert found["fits"] is True
    assert found["plan"]["steps"] == 60
    method = ConvLora(**LEARNED_ROUTER)
    model = Segmenter.from_backbone(str(small_backbone), ("background", "foreground"), method)
    assert sum(found["trained_parameters"].values()) == model.count_parameters().trainable
    assert sum(found["class_shares"].values()) == pytest.approx(1)


def test_says_when_it_does_not_fit_and_what_to_change(binary_data, small_backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda device: 100 * MIB)
    values = {
        "data": binary_data,
        "out": tmp_path / "r",
        "backbone": str(small_backbone),
        "precision": "fp32",
    }
    found = dry_run(make_config(values))
    assert not found.fits
    text = "\n".join(found.lines())
    assert "100 MiB are free on cpu: does not fit. Try --micro-batch 2, " in text
    assert "--checkpointing, --image-size 32," in text
    text = "\n".join(dry_run(make_config(values), resume=True).lines())
    assert "does not fit. Try --micro-batch 2 or --checkpointing, or start a new run in another --out" in text
    least = {"micro_batch": 1, "checkpointing": True, "method": "decoder-only"}
    text = "\n".join(dry_run(make_config(values | least), resume=True).lines())
    assert "does not fit. Start a new run in another --out with " in text
    assert "--image-size 32 or a smaller --backbone.\n" in text


def test_a_preset_needs_no_weights(binary_data, tmp_path):
    values = {"data": binary_data, "out": tmp_path / "r", "backbone": "facebook/sam-vit-huge"}
    found = dry_run(make_config(values))
    assert sum(found.trained_parameters.values()) == 4_020_096 - 32 * 3 * 8  # its gate has no noise
    assert found.memory_mib > 4000
    found = dry_run(make_config({**values, "preset": "paper"}))
    assert sum(found.trained_parameters.values()) == 4_020_096


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"metric": "dize"}, ConfigError, "metric 'dize' is not computed here"),
        ({"loss": "ce-dice"}, ConfigError, "is for head 'per-class'"),
        ({"batch_size": 4, "micro_batch": 3}, ConfigError, "micro_batch is 3; it must divide"),
        ({"image_size": 100}, ConfigError, "image_size is 100; it must be a multiple"),
        ({"data": "nowhere"}, DataError, "nowhere"),
    ],
)
def test_errors_are_those_of_training(values, error, message, binary_data, small_backbone, tmp_path):
    known = {"data": binary_data, "out": tmp_path / "r", "backbone": str(small_backbone)}
    with pytest.raises(error, match=message):
        dry_run(make_config(known | values))


def test_embeddings_that_will_be_kept_are_told(binary_data, small_backbone, tmp_path):
    known = {"data": binary_data, "out": tmp_path / "r", "backbone": str(small_backbone), "image_size": 512}
    frozen = dry_run(make_config({**known, "method": "decoder-only"}))
    images = 2 * 8 + 4
    assert frozen.embeddings_mb == -(-4 * images * 64 * 64 * 32 // 10**6) == 11
    said = "\n".join(frozen.lines())
    assert f"embeddings: at most 11 MB in {cache_folder()}, which may take 20 GB" in said
    assert "note: the encoder stays as it is: its embeddings are computed once and kept; keep_emb" in said
    assert not cache_folder().exists()
    plain = dry_run(make_config({**known, "method": "decoder-only", "augment": "none"}))
    assert plain.embeddings_mb < 0.7 * frozen.embeddings_mb
    moving = dry_run(make_config({**known, "method": "decoder-only", "augment": "strong"}))
    assert moving.embeddings_mb == 0
    assert "With augment=flip or augment=none its embeddings would be computed once" in moving.remarks[0]
    other = dry_run(make_config(known))
    assert (other.embeddings_mb, other.remarks) == (0, [])
    off = dry_run(make_config({**known, "method": "decoder-only", "keep_embeddings": False}))
    assert (off.embeddings_mb, off.remarks) == (0, [])


def test_classes_are_those_of_the_images_that_are_kept(small_backbone, tmp_path, capsys):
    data = write_shapes(tmp_path / "data", 3, {"train": 4, "val": 1})
    for i in range(3):
        file = data / "train" / "masks" / f"train_{i:02d}.png"
        mask = np.asarray(Image.open(file))
        Image.fromarray(np.where(mask == 2, 0, mask)).save(file)
    values = {"data": data, "out": tmp_path / "run", "backbone": str(small_backbone), "max_steps": 1}
    one = {"train_images": 1, "previews": 0, "seed": 0}  # train_02, without the bar
    found = dry_run(make_config(values | one))
    assert (found.images["train"], found.class_shares["bar"]) == (1, 0)
    (warning,) = [line for line in found.warnings if line.startswith("train_images")]
    assert "none of the 1 training images that are kept, of 4, holds 'bar'" in warning
    whole = dry_run(make_config(values))
    assert whole.class_shares["bar"] > 0
    assert not [line for line in whole.warnings if line.startswith("train_images")]
    capsys.readouterr()
    fit(make_config(values | one))
    assert f"warning: {warning}" in capsys.readouterr().out


def test_what_is_resumed_has_the_splits_of_the_run(small_backbone, tmp_path):
    """Images that have come since are in no split, so they change neither images nor steps."""
    data = write_table(tmp_path / "data", split=False, count=4)
    config = make_config({"data": data, "out": tmp_path / "run", "backbone": str(small_backbone)})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "split.json").write_text(record_splits(check_dataset(data).dataset))
    before = dry_run(config)
    for i in range(8):
        write_image(data / "pictures" / f"new{i}.png", seed=9)
        shutil.copy(data / "truth" / "train0_mask.png", data / "truth" / f"new{i}_mask.png")
        with (data / "data.csv").open("a") as file:
            file.write(f"pictures/new{i}.png,truth/new{i}_mask.png\n")
    found = dry_run(config, resume=True)
    assert (found.images, found.plan) == (before.images, before.plan)
    made = "splits: made here by seed 0, image by image"
    assert [sum(made in line for line in told.remarks) for told in (before, found)] == [1, 0]
    assert any("8 images have come since the run" in line for line in found.warnings)
    assert dry_run(config).images["train"] > before.images["train"]
