"""The baseline that is not SAM goes the whole way that SAM goes."""

import json
import sys

import numpy as np
import pytest
import torch
from monai.networks.nets import BasicUNet

from convlora.checkpoint import from_pretrained, save_pretrained
from convlora.errors import ConfigError, MissingExtraError
from convlora.model import SegmenterConfig
from convlora.unet import Unet

TRAIN = ["--backbone", "unet", "--method", "full", "--max-steps", "3", "--image-size", "64"]
BINARY = SegmenterConfig("unet", ("no", "yes"), "full", image_size=64)


def test_it_is_monais(tmp_path):
    model, other = Unet.from_scratch(BINARY, seed=3), Unet.from_scratch(BINARY, seed=4)
    torch.manual_seed(3)
    own = BasicUNet(spatial_dims=2, in_channels=3, out_channels=1)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(image).mask_logits, own(image))
        assert not torch.equal(model(image).mask_logits, other(image).mask_logits)
    counted = model.count_parameters()
    assert counted.trainable == counted.total == sum(p.numel() for p in own.parameters()) == 1_979_009
    save_pretrained(other, tmp_path / "best")
    back = from_pretrained(tmp_path / "best")
    with torch.no_grad():
        assert torch.equal(back(image).mask_logits, other.eval()(image).mask_logits)


def test_train_evaluate_predict(command, three_class_data, tmp_path):
    out = tmp_path / "run"
    code, text, error = command("train", three_class_data, "--out", out, *TRAIN, "--set", "eval_every=1")
    assert (code, error) == (0, "")
    assert "full on unet: 1,979,107 of 1,979,107" in text or "full on unet" in text
    losses = [json.loads(line).get("loss") for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < losses[0]
    assert command("evaluate", out, three_class_data)[0] == 0
    image = next((three_class_data / "test" / "images").iterdir())
    assert command("predict", out, image, "--out", tmp_path / "masks")[0] == 0
    assert (tmp_path / "masks" / image.name).exists()
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lora"}, "method is lora, but the backbone 'unet' has no frozen part"),
        ({"head": "mask-classification", "num_masks": 9}, "needs SAM's mask tokens"),
        ({"image_size": 72}, "image_size is 72; for the backbone 'unet' it must be a multiple of 16"),
    ],
)
def test_what_it_cannot_do(changes, message):
    with pytest.raises(ConfigError, match=message):
        Unet(SegmenterConfig(**{**vars(BINARY), **changes}))


def test_without_monai(monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets.basic_unet", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'convlora\[unet\]'"):
        Unet(BINARY)


def test_no_dry_run(command, binary_data, tmp_path):
    code, _, error = command("train", binary_data, "--out", tmp_path / "run", *TRAIN, "--dry-run")
    assert (code, "--dry-run covers SAM's backbones" in error) == (2, True)
