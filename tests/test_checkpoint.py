"""The adapter folder: what it holds, that it comes back, and what is said when it does not fit."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from convlora.adapter_folder import read_config
from convlora.adapters import ConvLora, Vpt, methods, trainable_parameters
from convlora.backbone.initialise import random_sam
from convlora.backbone.weights import save_sam
from convlora.checkpoint import CARD, CONFIG, TENSORS, find_adapter, from_pretrained, save_pretrained
from convlora.errors import ConfigError, WeightsError
from convlora.model import Segmenter
from small import SMALL

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def trained(backbone, **options) -> Segmenter:
    """A model whose trained parameters have all moved from where they started."""
    model = Segmenter.from_backbone(str(backbone), ("background", "a", "b"), **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture
def folder(small_backbone, tmp_path):
    save_pretrained(trained(small_backbone), tmp_path / "best", {"metrics": {"mean_iou": 0.5, "x": None}})
    return tmp_path / "best"


@pytest.mark.parametrize(
    ("method", "head"),
    [
        *((method, "per-class") for method in methods()),
        *((method, "mask-classification") for method in ("conv-lora", "decoder-only")),
        (ConvLora(routing="soft", scope="image"), "per-class"),
        (ConvLora(routing="switch", top_k=2), "per-class"),
        (Vpt(deep=False), "per-class"),
    ],
    ids=str,
)
def test_comes_back_the_same_under_another_seed(small_backbone, tmp_path, method, head):
    model = trained(small_backbone, method=method, head=head)
    save_pretrained(model, tmp_path / "adapter")
    torch.manual_seed(99)
    back = from_pretrained(tmp_path / "adapter")
    assert back.config == model.config
    with torch.no_grad():
        for got, want in zip(back(IMAGE), model(IMAGE), strict=True):
            assert (got is None) == (want is None)
            assert got is None or torch.equal(got, want)
        untrained = Segmenter.from_backbone(
            str(small_backbone), ("background", "a", "b"), method, head=head
        ).eval()
        assert not torch.allclose(untrained(IMAGE).mask_logits, model(IMAGE).mask_logits)


def test_holds_only_what_was_trained(small_backbone, folder):
    tensors = load_file(folder / TENSORS)
    model = trained(small_backbone)
    assert set(tensors) == set(trainable_parameters(model))
    assert not any(name.endswith("qkv.base.weight") for name in tensors)
    content = json.loads((folder / CONFIG).read_text())
    assert content["trained_parameters"] == sum(t.numel() for t in tensors.values())
    card = (folder / CARD).read_text()
    assert "library_name: convlora" in card
    assert "| mean_iou | 0.5000 |" in card
    # the hub refuses cards whose base model is no hub id, and the path says whose computer it was
    assert "base_model" not in card
    assert str(small_backbone.parent) not in card
    assert f"# {content['method']} on {small_backbone.name}\n" in card


def test_a_card_names_a_backbone_of_the_hub(small_backbone, tmp_path):
    model = trained(small_backbone)
    model.config = dataclasses.replace(model.config, backbone="facebook/sam-vit-base")
    save_pretrained(model, tmp_path / "a")
    card = (tmp_path / "a" / CARD).read_text()
    assert "base_model: facebook/sam-vit-base\nbase_model_relation: adapter\n" in card
    assert "Made by" not in card
    save_pretrained(model, tmp_path / "a", {"command": "convlora train DATA --out a"})
    assert "Made by: `convlora train DATA --out a`." in (tmp_path / "a" / CARD).read_text()


def test_a_card_shows_every_kind_of_value(small_backbone, tmp_path):
    """And what JSON cannot hold is refused, with what was there before kept."""
    model, folder = trained(small_backbone), tmp_path / "a"
    metrics = {"note": "good | fine\nyes", "ok": True, "count": 3, "share": 0.25, "list": [1], "none": None}
    save_pretrained(model, folder, {"metrics": metrics})
    rows = (folder / CARD).read_text().split("|---|---|\n")[1].splitlines()
    assert rows == [
        *("| note | good \\| fine yes |", "| ok | True |", "| count | 3.0000 |"),
        *("| share | 0.2500 |", "| list | [1] |"),
    ]
    save_pretrained(model, folder, {"metrics": 0.5})
    assert (folder / CARD).read_text().endswith("|---|---|\n\n")
    with pytest.raises(ConfigError, match=r"must hold what JSON can.*float32 is not JSON.*\.tolist\(\)"):
        save_pretrained(model, folder, {"metrics": {"dice": np.float32(0.5)}})
    assert read_config(folder).training == {"metrics": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_loading_leaves_the_caller_s_random_state(folder):
    torch.manual_seed(3)
    wanted = torch.randn(4)
    torch.manual_seed(3)
    from_pretrained(folder)
    assert torch.equal(torch.randn(4), wanted)


def test_run_folder_stands_for_its_best(folder):
    assert find_adapter(folder.parent) == folder
    assert find_adapter(str(folder)) == folder


def test_saving_again_replaces(small_backbone, folder):
    model = trained(small_backbone, method="lora")
    save_pretrained(model, folder)
    assert from_pretrained(folder).config.method == "lora"
    assert sorted(p.name for p in folder.parent.iterdir()) == ["best"]


def test_backbone_that_moved(small_backbone, folder, tmp_path):
    shutil.copytree(small_backbone, tmp_path / "moved")
    assert from_pretrained(folder, backbone=str(tmp_path / "moved")).config.backbone == str(small_backbone)


def test_other_backbone_is_refused(folder, tmp_path):
    save_sam(random_sam(SMALL, seed=5), tmp_path / "other")
    with pytest.raises(
        WeightsError, match=r"was trained on the backbone .* Give the backbone it was trained on"
    ):
        from_pretrained(folder, backbone=str(tmp_path / "other"))


def _edit(folder, **changes):
    content = json.loads((folder / CONFIG).read_text())
    content.update(changes)
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"classes": ["background", "a", "b", "c"]},
            r"(?s)adapter_model.safetensors does not fit .*4 classes.*mask_tokens",
        ),
        ({"method": "lora", "method_options": {}}, r"(?s)unexpected.*experts"),
        (
            {"format": 99, "convlora_version": "7.0"},
            r"written by convlora 7.0, in format 99; .*pip install -U",
        ),
        ({"format": None}, "is not an adapter configuration of convlora"),
        ({"image_size": None}, r"(?s)damaged or was edited:.*'image_size' is missing"),
    ],
    ids=["other classes", "other method", "newer", "not ours", "key missing"],
)
def test_configuration_that_does_not_fit(folder, changes, message):
    _edit(folder, **changes)
    with pytest.raises(WeightsError, match=message):
        from_pretrained(folder)


def test_damaged_configuration(folder):
    (folder / CONFIG).write_text("{")
    with pytest.raises(WeightsError, match=r"adapter_config\.json is damaged"):
        from_pretrained(folder)


@pytest.mark.parametrize("damage", ["truncated", "tampered", "gone"])
def test_damaged_tensors(folder, damage):
    file = folder / TENSORS
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "tampered":
        tensors = load_file(file)
        tensors.pop("decoder.iou_token.weight")
        save_file(tensors, file)
    else:
        file.unlink()
    expected = {
        "truncated": "is damaged",
        "tampered": r"is damaged, or not the file that adapter_config\.json was saved with",
        "gone": "does not exist",
    }
    with pytest.raises(WeightsError, match=expected[damage]):
        from_pretrained(folder)


def test_folder_without_adapter(tmp_path):
    with pytest.raises(WeightsError, match=re.escape(f"{tmp_path} holds no adapter_config.json")):
        from_pretrained(tmp_path)


def test_name_that_is_nowhere(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="is no folder that exists here"):
        from_pretrained("someone/some-adapter")


def test_copies_of_the_user_beside_a_replaced_folder_stay(binary_adapter, tmp_path):
    model = from_pretrained(binary_adapter)
    save_pretrained(model, tmp_path / "best")
    for name in ("best.old", "best.part"):
        shutil.copytree(tmp_path / "best", tmp_path / name)
    save_pretrained(model, tmp_path / "best")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "best.old", "best.part"]


@pytest.mark.parametrize("left", [".best.replaced-by-convlora", "best.old"])  # .old: left by runs of before
def test_a_kill_between_two_renames_leaves_the_model_before(binary_adapter, tmp_path, left):
    shutil.copytree(binary_adapter, tmp_path / left)
    assert find_adapter(tmp_path).name == left
    from_pretrained(tmp_path)
    save_pretrained(from_pretrained(tmp_path), tmp_path / "best")
    assert find_adapter(tmp_path) == tmp_path / "best"
    assert (tmp_path / left).exists() == (left == "best.old")  # which may be a copy of the user's


def test_an_adapter_folder_by_a_relative_name(binary_adapter, tmp_path, monkeypatch):
    model = from_pretrained(binary_adapter)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for _ in range(2):
        save_pretrained(model, Path("../best"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "work"]
