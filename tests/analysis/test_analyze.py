"""The whole analysis of small runs: what is written, what it says, and what is refused."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from convlora.adapters import trainable_parameters
from convlora.analysis.analyze import _Look, analyze
from convlora.analysis.attention import watch_distances
from convlora.analysis.routing import watch_routing
from convlora.backbone.image_encoder import ImageEncoder
from convlora.checkpoint import save_pretrained
from convlora.data.check import check_dataset
from convlora.data.images import read_image
from convlora.data.splits import record_splits
from convlora.data.transforms import MEAN, STD
from convlora.errors import ConfigError
from convlora.model import Segmenter, SegmenterConfig
from convlora.unet import Unet
from small import SMALL

CLASSES = ("background", "disc", "bar")


def saved(backbone, folder, method="conv-lora", **options):
    from convlora.adapters import build_method

    model = Segmenter.from_backbone(str(backbone), CLASSES, build_method(method, options), resize="pad")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    save_pretrained(model.eval(), folder)
    return model


def test_conv_lora(command, small_backbone, three_class_data, tmp_path):
    saved(small_backbone, tmp_path / "run" / "best")
    code, text, _ = command("analyze", tmp_path / "run", three_class_data, "--images", "3")
    assert code == 0
    out = tmp_path / "run" / "analysis"
    assert f"Read {out / 'README.md'} first" in text
    found = json.loads((out / "analysis.json").read_text())
    assert found["images"] == ["test_00", "test_02", "test_03"]  # evenly spaced, of four
    assert list(found["routing"]) == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    for shares in found["routing"].values():
        assert [sum(row) for row in shares] == pytest.approx([1.0] * 3)
    assert all(max(row) == 1 for row in found["routing"]["blocks.1.attn.qkv"])  # global: one decision
    windows = torch.tensor(found["routing"]["blocks.0.attn.qkv"]) * 4  # of 4 x 4 in a grid of 8 x 8
    assert torch.equal(windows, windows.round())
    for when in ("before", "after"):
        assert [len(heads) for heads in found["distances"][when].values()] == [2, 2]
        assert set(found["probes"][when]) == {"blocks", "embedding"}
    assert found["distances"]["before"] != found["distances"]["after"]
    assert found["windows"] == {"0": 32, "1": 0}
    assert found["probes"]["before"]["blocks"]["mean_iou"] != found["probes"]["after"]["blocks"]["mean_iou"]
    for name in ("routing.png", "attention.png", "probe.png"):
        assert read_image(out / name).shape[1] > 500
    readme = (out / "README.md").read_text()
    for part in (
        "Which scale",
        "windows of 32 px",
        "| embedding (neck) |",
        "no evidence that",
    ):
        assert part in readme


@pytest.mark.parametrize(
    ("method", "says", "pictures"),
    [
        ("lora", "lora has no gate", {"attention.png", "probe.png"}),
        ("vpt", "Not measured: vpt runs the blocks in its own way", {"probe.png"}),
        ("lst", "lst has no gate", {"attention.png", "probe.png"}),
        ("decoder-only", "decoder-only has no gate", {"attention.png", "probe.png"}),
    ],
)
def test_other_methods(small_backbone, three_class_data, tmp_path, method, says, pictures):
    saved(small_backbone, tmp_path / "best", method)
    found = analyze(tmp_path, three_class_data, tmp_path / "out", images=2, say=lambda _: None)
    assert says in (tmp_path / "out" / "README.md").read_text()
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == pictures
    if method == "decoder-only":  # nothing has changed
        assert found.distances["before"] == found.distances["after"]
        assert found.probes["before"] == found.probes["after"]


@pytest.mark.parametrize("routing", ["switch", "soft", "soft-pixel"])
def test_shares_are_those_of_the_gate(small_backbone, tmp_path, routing):
    model = saved(small_backbone, tmp_path / "best", routing=routing)
    seen = {}
    for name, layer in model.encoder.named_modules():
        if name.endswith("gate"):
            layer.register_forward_hook(lambda m, a, out, n=name: seen.setdefault(n, out))
    with torch.no_grad(), watch_routing(model.encoder) as choices:
        model.encoder(torch.randn(1, 3, 64, 64))
    for name, shares in choices.stacked().items():
        output = seen[f"{name}.gate"]
        if routing == "switch":
            counts = [int((output.indices == e).sum()) for e in range(8)]
            expected = torch.tensor(counts) / output.indices.numel()
        else:
            expected = output.reshape(-1, 8).mean(0)
        torch.testing.assert_close(shares[0], expected)
        assert shares.std() > 0
    model.encoder(torch.randn(1, 3, 64, 64))
    assert all(len(rows) == 1 for rows in choices.shares.values())


def look_at(data, resize):
    dataset = check_dataset(data, classes=CLASSES, splits=("train", "test")).dataset
    config = SimpleNamespace(image_size=64, resize=resize)
    model = SimpleNamespace(config=config, encoder=SimpleNamespace(spec=SimpleNamespace(patch_size=8)))
    return _Look(dataset, "test", 2, model, torch.device("cpu"))


@torch.no_grad()
def test_distances_leave_out_the_padding_of_each_image(three_class_data):
    """An image of 60 x 40 px fills 6 of 8 columns of the map, one of 48 x 64 px 6 of 8 rows."""
    torch.manual_seed(0)
    encoder = ImageEncoder(SMALL.encoder).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    look = look_at(three_class_data, "pad")
    first, last = look.pairs("test")
    rows = []
    for pair, height, width in ((first, 8, 6), (last, 6, 8)):
        inside = torch.zeros(8, 8, dtype=torch.bool)
        inside[:height, :width] = True
        with watch_distances(encoder, inside) as found:
            encoder(look._image(pair)[0])
        rows.append(found)
    for block, heads in look.distances(encoder).items():
        assert heads == torch.stack([found[block][0] for found in rows]).mean(0).tolist()


class MiddlePixels(nn.Module):
    """Instead of an encoder: the pixel in the middle of each patch of 8."""

    neck = nn.Identity()

    def forward(self, image):
        return self.neck(image[:, :, 4::8, 4::8])


def test_the_probes_labels_are_those_at_the_middle_of_each_patch(tmp_path):
    """Images whose red says the class of every pixel, of the encoder's own size."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for i in range(2):
            mask = rng.integers(0, 3, (64, 64)).astype(np.uint8)
            for kind, pixels in (("images", np.stack([100 * mask] * 3, axis=2)), ("masks", mask)):
                (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(tmp_path / split / kind / f"{split}{i}.png")
    look = look_at(tmp_path, "stretch")
    found = look._features(MiddlePixels(), "test")
    assert [len(found[place]) for place in ("blocks", "embedding")] == [2, 2]
    for features, labels in [*found["blocks"], *found["embedding"]]:
        red = 255 * (features[:, 0] * STD[0] + MEAN[0]) / 100
        assert np.array_equal(red.round().astype(int), labels)
        assert not np.array_equal(labels.reshape(8, 8), labels.reshape(8, 8).T)


def test_scores_on_training_images_are_warned_of(command, small_backbone, three_class_data, tmp_path):
    """Other data than the run's, in whose test split some of the run's training images are."""
    saved(small_backbone, tmp_path / "run" / "best", "lora")
    record = record_splits(check_dataset(three_class_data).dataset)
    (tmp_path / "run" / "split.json").write_text(record)
    data = shutil.copytree(three_class_data, tmp_path / "data")
    code, text, error = command("analyze", tmp_path / "run", data, "--images", "2")
    assert (code, "[trained-on]" in text + error) == (0, False)
    for kind in ("images", "masks"):
        (data / "train" / kind / "train_00.png").replace(data / "test" / kind / "other.png")
    code, text, error = command("analyze", tmp_path / "run", data, "--images", "2")
    assert (code, (text + error).count("[trained-on]")) == (0, 1), error
    assert "1 images of the split 'test' are training images of the run, first " in text + error
    assert "Remove them; or take the scores of the probe for those on training images." in text + error
    (tmp_path / "run" / "split.json").unlink()
    for kind in ("images", "masks"):
        for split in ("train", "val", "test"):
            shutil.copytree(data / split / kind, tmp_path / "flat" / kind, dirs_exist_ok=True)
    shutil.copy(data / "classes.txt", tmp_path / "flat")
    code, text, error = command("analyze", tmp_path / "run", tmp_path / "flat", "--images", "2")
    assert (code, "warning: [unknown-splits]" in text + error) == (0, True), error


def test_what_is_refused(small_backbone, three_class_data, tmp_path, monkeypatch):
    config = SegmenterConfig("unet", CLASSES, "full", head="per-class", image_size=64)
    save_pretrained(Unet(config), tmp_path / "u")
    with pytest.raises(ConfigError, match="holds a unet; only SAM's encoder can be analysed"):
        analyze(tmp_path / "u", three_class_data, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("my notes")
    with pytest.raises(ConfigError, match=r"README\.md exists already, and nothing is .* Give another --out"):
        analyze(tmp_path / "u", three_class_data, tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_text() == "my notes"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Exception, match=r"pip install 'convlora\[analyze\]'"):
        analyze(tmp_path / "u", three_class_data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mistakes_on_the_command_line(command, small_backbone, three_class_data, tmp_path):
    saved(small_backbone, tmp_path / "run" / "best")
    code, _, error = command("analyze", tmp_path / "run", three_class_data, "--split", "tst")
    assert (code, "split is 'tst'; it must be one of train, val, test. Did you mean 'test'?" in error) == (
        2,
        True,
    )
    code, _, error = command("analyze", "someone/adapter", three_class_data)
    assert (code, "someone/adapter is no folder here, so --out must say where" in error) == (2, True)
