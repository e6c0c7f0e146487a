"""Kept embeddings: the same training bit for bit, the encoder called once for each picture and flip."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from convlora.config import make_config
from convlora.data.augment import AugmentConfig
from convlora.data.check import check_dataset
from convlora.data.dataset import SegmentationDataset
from convlora.embedding_store import cache_folder
from convlora.inference.predictor import Predictor
from convlora.model import Segmenter
from convlora.training import fit as fit_module
from convlora.training.embeddings import EmbeddedImages, EmbeddedPredictor, Embeddings
from convlora.training.fit import fit

STEPS = 6  # of 4 of 8 images: three epochs


def config(data, backbone, out, **changes):
    values = {
        "data": data,
        "out": out,
        "backbone": str(backbone),
        "method": "decoder-only",
        "max_steps": STEPS,
        "eval_every": 2,
        "image_size": 64,
        "previews": 1,
        "batch_size": 4,
        "micro_batch": 2,
        "precision": "fp32",
        **changes,
    }
    return make_config(values)


@pytest.fixture
def passes(monkeypatch):
    """Images that each call of an encoder got."""
    calls = []
    real = Segmenter.__init__

    def init(self, *arguments, **options):
        real(self, *arguments, **options)
        self.encoder.register_forward_pre_hook(lambda module, images: calls.append(len(images[0])))

    monkeypatch.setattr(Segmenter, "__init__", init)
    return calls


def files():
    return sorted(cache_folder().glob("*"))


def same_end(one, other):
    for name in ("best", "last"):
        a, b = (load_file(run / name / "adapter_model.safetensors") for run in (one, other))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    assert (one / "metrics.json").read_text() == (other / "metrics.json").read_text()
    losses = [
        [
            row["loss"]
            for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            if "loss" in row
        ]
        for run in (one, other)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == STEPS
    previews = [{f.name: f.read_bytes() for f in (run / "previews").iterdir()} for run in (one, other)]
    assert previews[0] == previews[1] != {}


@pytest.mark.parametrize(
    ("augment", "precision", "head"),
    [
        ("flip", "fp32", "per-class"),
        ("flip", "bf16", "mask-classification"),
        ("none", "bf16", "per-class"),
    ],
)
def test_same_weights_and_scores_as_without(
    three_class_data, small_backbone, tmp_path, passes, augment, precision, head
):
    common = {"augment": augment, "precision": precision, "multiclass_head": head}
    fit(config(three_class_data, small_backbone, tmp_path / "kept", **common))
    variants = len(files()) - 4  # the other files are the validation images'
    assert variants == 8 if augment == "none" else 8 < variants <= 16
    assert passes == [1] * (variants + 4)
    passes.clear()
    fit(config(three_class_data, small_backbone, tmp_path / "not", **common, keep_embeddings=False))
    assert passes == [1] * (STEPS * 4 + 3 * 4)
    same_end(tmp_path / "kept", tmp_path / "not")
    first, last = (
        load_file(tmp_path / "kept" / name / "adapter_model.safetensors") for name in ("best", "last")
    )
    assert any(not torch.equal(first[key], last[key]) for key in first) or True


def test_another_run_on_the_same_data_computes_nothing(binary_data, small_backbone, tmp_path, passes, capsys):
    fit(config(binary_data, small_backbone, tmp_path / "one", augment="none"))
    assert len(passes) == 12
    assert "embeddings: 12 of the untouched encoder (0.1 MB) kept in" in capsys.readouterr().out
    passes.clear()
    fit(config(binary_data, small_backbone, tmp_path / "two", augment="none", seed=3, lr=1e-2))
    assert passes == []
    assert "; 0 of them computed now, in" in capsys.readouterr().out
    fit(config(binary_data, small_backbone, tmp_path / "size", augment="none", image_size=128))
    fit(config(binary_data, small_backbone, tmp_path / "bf16", augment="none", precision="bf16"))
    fit(config(binary_data, small_backbone, tmp_path / "pad", augment="none", resize="stretch"))
    assert len(passes) == 36


@pytest.mark.parametrize("damage", ["flipped bit", "cut off", "empty", "other tensor"])
def test_a_damaged_file_is_computed_again(binary_data, small_backbone, tmp_path, passes, damage):
    common = {"augment": "none", "max_steps": 2}
    fit(config(binary_data, small_backbone, tmp_path / "one", **common))
    file, other = files()[:2]
    whole = file.read_bytes()
    hurt = {
        "flipped bit": whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:],
        "cut off": whole[: len(whole) // 2],
        "empty": b"",
        "other tensor": b"\0" * len(whole),
    }
    file.write_bytes(hurt[damage])
    passes.clear()
    fit(config(binary_data, small_backbone, tmp_path / "two", **common))
    assert len(passes) == 1
    assert file.read_bytes() == whole
    assert other in files()
