"""Merged models predict what the adapters predict; methods that cannot be merged are refused."""

import json

import numpy as np
import pytest
import torch
from transformers import SamModel

from convlora.adapters import trainable_parameters
from convlora.backbone.weights import load_sam
from convlora.checkpoint import find_adapter, from_pretrained, save_pretrained
from convlora.data.images import read_image
from convlora.errors import ConfigError, WeightsError
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
        ("conv-lora", r"attn.qkv \(ConvLoRALinear\) cannot be merged: its update depends on the input"),
        ("adapter", "cannot be merged: its update depends on the input"),
        ("lst", "cannot be merged"),
        ("vpt", "cannot be merged"),
        ("sam-adapter", "cannot be merged"),
        ("decoder-only", "which leaves the encoder as it is: there is nothing to merge"),
    ],
)
def test_methods_that_cannot_be_merged(small_backbone, tmp_path, method, message):
    source = save(small_backbone, tmp_path / "adapter", method)
    with pytest.raises(ConfigError, match=message):
        merge_run(source, tmp_path / "merged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter"]


def test_a_unet_has_nothing_to_merge(tmp_path):
    save_pretrained(Unet(SegmenterConfig("unet", ("no", "yes"), "full", image_size=64)), tmp_path / "best")
    with pytest.raises(ConfigError, match="holds a unet, which has no method to merge"):
        merge_run(tmp_path, tmp_path / "merged")


def test_rounding_is_told_from_errors(small_backbone, tmp_path, monkeypatch):
    source = save(small_backbone, tmp_path / "adapter", "bitfit")
    real = from_pretrained

    def spoiled(folder, backbone=None):
        model = real(folder, backbone)
        if str(folder).endswith(".part"):
            with torch.no_grad():
                model.decoder.mask_tokens.weight.mul_(3)
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
