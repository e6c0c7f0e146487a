"""Merged models predict what the adapters predict; methods that cannot be merged are refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from transformers import SamModel

from convlora.adapters import merge, trainable_parameters
from convlora.backbone.weights import load_sam
from convlora.checkpoint import find_adapter, from_pretrained, save_pretrained
from convlora.data.images import read_image
from convlora.errors import ConfigError, DataError, WeightsError
from convlora.inference.predictor import Predictor
from convlora.merging import merge_run
from convlora.model import Segmenter, SegmenterConfig
from convlora.unet import Unet


def save(backbone, folder, method, **options):
    """A model whose trained parameters have all moved."""
    model = Segmenter.from_backbone(str(backbone), ("background", "a", "b"), method, **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_pretrained(model, folder, {"metrics": {"mean_iou": 0.5}})
    return folder


@pytest.mark.parametrize("head", ["per-class", "mask-classification"])
@pytest.mark.parametrize("method", ["lora", "ssf", "bitfit", "full"])
def test_predicts_the_same(small_backbone, three_class_data, tmp_path, method, head):
    source = save(small_backbone, tmp_path / "adapter", method, head=head)
    out = merge_run(source, tmp_path / "merged")
    content = json.loads((out / "adapter_config.json").read_text())
    assert (content["method"], content["backbone"]) == ("decoder-only", "backbone")
    assert content["training"]["merged_method"] == method
    assert content["training"]["metrics"] == {"mean_iou": 0.5}
    moved = out.rename(tmp_path / "elsewhere")  # the backbone lies beside
    image = read_image(next((three_class_data / "test" / "images").iterdir()))
    one, two = (
        Predictor(from_pretrained(folder), precision="fp32").predict(image) for folder in (source, moved)
    )
    # float32: the update is summed into the weight instead of beside it
    np.testing.assert_allclose(two.probabilities, one.probabilities, atol=1e-4)
    plain = save(small_backbone, tmp_path / "plain", "decoder-only", head=head)
    other = Predictor(from_pretrained(plain), precision="fp32").predict(image)
    assert not np.allclose(other.probabilities, one.probabilities, atol=1e-2)


def test_the_backbone_is_a_sam_for_other_tools(small_backbone, tmp_path):
    source = save(small_backbone, tmp_path / "adapter", "lora")
    backbone = merge_run(source, tmp_path / "merged") / "backbone"
    image = torch.randn(1, 3, 64, 64)
    theirs = SamModel.from_pretrained(backbone).eval()
    with torch.no_grad():
        expected = from_pretrained(source).encoder(image)
        # two implementations of the same sums in float32
        torch.testing.assert_close(theirs.get_image_embeddings(image), expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(load_sam(small_backbone).sam.image_encoder(image), expected, atol=1e-2)
    # prompts keep working: the decoder is SAM's
    assert load_sam(backbone).sam.mask_decoder.mask_tokens.weight.shape[0] == 4


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            "conv-lora",
            r"was trained with conv-lora, which no plain SAM equals\. blocks\.0\.attn\.qkv \(ConvLoRALinear"
            r"\) cannot be merged: its update depends on the input \(routing and GELU\), so no fixed weight "
            r"equals it\. Keep the adapter beside the backbone\. Every command takes it as it is\.",
        ),
        (
            "conv-lora-multiscale",
            "trained with conv-lora-multiscale, .* cannot be merged: its update depends on",
        ),
        ("adapter", "trained with adapter, .* cannot be merged: its update depends on the input"),
        ("lst", "trained with lst, .* cannot be merged: its update depends on the input"),
        ("vpt", "trained with vpt, .* cannot be merged: its update depends on the input"),
        ("sam-adapter", "trained with sam-adapter, .* cannot be merged: its update depends on the input"),
        ("decoder-only", "which leaves the encoder as it is: there is nothing to merge"),
    ],
)
def test_methods_that_cannot_be_merged(small_backbone, tmp_path, method, message, monkeypatch):
    source = save(small_backbone, tmp_path / "adapter", method)
    monkeypatch.delattr(Segmenter, "forward")  # before anything is computed, which takes a minute at ViT-H
    with pytest.raises(ConfigError, match=message):
        merge_run(source, tmp_path / "merged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_weights_that_a_prediction_has_rounded_are_not_merged(small_backbone, tmp_path, precision):
    model = from_pretrained(save(small_backbone, tmp_path / "adapter", "lora"))
    Predictor(model, "cpu", precision)
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    held = {"bf16": "bfloat16", "fp16": "float16"}[precision]
    with pytest.raises(ConfigError, match=rf"is held in {held} since .*Load the model again, and merge it"):
        merge(model.encoder)
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())


def test_a_unet_has_nothing_to_merge(tmp_path):
    save_pretrained(Unet(SegmenterConfig("unet", ("no", "yes"), "full", image_size=64)), tmp_path / "best")
    with pytest.raises(ConfigError, match="holds a unet, which has no method to merge"):
        merge_run(tmp_path, tmp_path / "merged")


def test_the_backbone_beside_comes_before_one_of_that_name_elsewhere(
    small_backbone, tmp_path, monkeypatch, command, binary_data
):
    out = merge_run(save(small_backbone, tmp_path / "adapter", "lora"), tmp_path / "merged")
    (tmp_path / "work" / "backbone").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    assert from_pretrained(out).config.method == "decoder-only"
    with pytest.raises(WeightsError, match=r"(?s)backbone holds no config\.json.*say where with --backbone"):
        from_pretrained(out, backbone="backbone")  # what the user says is taken as it is


def test_from_the_hub_with_its_backbone(small_backbone, tmp_path, monkeypatch):
    out = merge_run(save(small_backbone, tmp_path / "adapter", "ssf"), tmp_path / "merged")
    (out / "big.bin").write_text("what is not needed")

    def snapshot(name, allow_patterns):
        assert name == "someone/merged"
        names = [str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()]
        for file in filter_repo_objects(names, allow_patterns=allow_patterns):
            (tmp_path / "cache" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(out / file, tmp_path / "cache" / file)
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        one, two = from_pretrained("someone/merged")(image), from_pretrained(out)(image)
    assert torch.equal(one.mask_logits, two.mask_logits)
    assert not (tmp_path / "cache" / "big.bin").exists()


def test_training_images_stay_known(command, small_backbone, binary_data, tmp_path):
    """The merged model of a run refuses to be scored on the images that the run was trained on."""
    data, run = tmp_path / "data", tmp_path / "run"
    for kind in ("images", "masks"):
        (data / kind).mkdir(parents=True)
        for split in ("train", "val", "test"):
            for file in (binary_data / split / kind).iterdir():
                (data / kind / file.name).write_bytes(file.read_bytes())
    code, _, error = command(
        *("train", data, "--out", run, "--backbone", small_backbone, "--method", "bitfit"),
        *("--max-steps", 1, "--image-size", 64, "--batch-size", 2),
    )
    assert code == 0, error
    out = merge_run(run, tmp_path / "merged")
    assert (out / "split.json").read_bytes() == (run / "split.json").read_bytes()
    trained = sorted(json.loads((run / "split.json").read_text())["train"])[0]
    (tmp_path / "new" / "test" / "images").mkdir(parents=True)
    (tmp_path / "new" / "test" / "masks").mkdir()
    for kind in ("images", "masks"):
        moved = tmp_path / "new" / "test" / kind / "other.png"
        moved.write_bytes((data / kind / f"{trained}.png").read_bytes())
    for model in (run, out):
        code, _, error = command("evaluate", model, tmp_path / "new")
        assert (code, "[trained-on] test: 1 images" in error) == (2, True), error
    (run / "split.json").write_text("{")
    with pytest.raises(DataError, match=r"split\.json is damaged"):
        merge_run(run, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_rounding_is_told_from_errors(small_backbone, tmp_path, monkeypatch):
    source = save(small_backbone, tmp_path / "adapter", "bitfit")
    real = from_pretrained

    def spoiled(folder, backbone=None):
        model = real(folder, backbone)
        if str(folder).endswith(".part-by-convlora"):
            with torch.no_grad():
                model.decoder.mask_tokens.weight.mul_(1.005)
        return model

    monkeypatch.setattr("convlora.merging.from_pretrained", spoiled)
    with pytest.raises(WeightsError, match=r"The merged model differs from that of bitfit by \d"):
        merge_run(source, tmp_path / "merged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]


def test_on_the_command_line(command, small_backbone, binary_data, tmp_path):
    source = save(small_backbone, tmp_path / "run" / "best", "ssf")
    code, text, _ = command("merge", tmp_path / "run", "--out", tmp_path / "merged")
    assert code == 0
    assert "with the merged SAM in" in text
    images = binary_data / "test" / "images"
    assert command("predict", tmp_path / "merged", images, "--out", tmp_path / "masks")[0] == 0
    assert find_adapter(tmp_path / "merged") == tmp_path / "merged"
    code, _, error = command("merge", source, "--out", tmp_path / "merged")
    assert (code, "holds files already. Give a new folder" in error) == (2, True)


def test_folders_of_the_user_beside_the_merged_one_stay(small_backbone, tmp_path):
    source = save(small_backbone, tmp_path / "adapter", "lora")
    for name in ("merged", "merged.old", "merged.part"):
        (tmp_path / name).mkdir()
    for name in ("merged.old", "merged.part"):
        (tmp_path / name / "mine").write_bytes(b"")
    merge_run(source, tmp_path / "merged")
    assert (tmp_path / "merged.old" / "mine").exists()
    assert (tmp_path / "merged.part" / "mine").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter", "merged", "merged.old", "merged.part"]
