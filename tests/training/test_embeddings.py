"""Kept embeddings: the same training bit for bit, the encoder called once for each picture and flip."""

import importlib
import json

import pytest
import torch
from safetensors.torch import load_file

from convlora.adapters import methods
from convlora.config import make_config
from convlora.data import dataset as dataset_module
from convlora.data.augment import AugmentConfig
from convlora.data.check import check_dataset
from convlora.data.dataset import SegmentationDataset
from convlora.embedding_store import cache_folder, hash_tensor
from convlora.errors import ConfigError
from convlora.model import Segmenter
from convlora.training import fit as fit_module
from convlora.training.embeddings import EmbeddedImages
from convlora.training.fit import fit
from convlora.training.stream import orders, place

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

    def note(module, images):
        assert images[0].is_contiguous()  # at real sizes another layout is another kernel, and other bits
        calls.append(len(images[0]))

    def init(self, *arguments, **options):
        real(self, *arguments, **options)
        self.encoder.register_forward_pre_hook(note)

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
    assert len(set(losses[0])) == STEPS  # something is learnt, of other images each time
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
    fit(config(binary_data, small_backbone, tmp_path / "pad", augment="none", resize="pad"))
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


def test_after_the_first_look_no_image_is_read(binary_data, small_backbone, tmp_path, monkeypatch):
    """Of the three epochs and three validations, only the preparation reads images."""
    read = []
    for module in ("convlora.data.dataset", "convlora.training.embeddings"):
        real = importlib.import_module(module).read_image
        monkeypatch.setattr(
            f"{module}.read_image", lambda path, real=real: read.append(path.stem) or real(path)
        )
    monkeypatch.setattr("convlora.inference.predictor.read_pixels", lambda path: read.append(path) or 1 / 0)
    fit(config(binary_data, small_backbone, tmp_path / "run", augment="none", previews=0))
    assert sorted(read) == [*(f"train_{i:02d}" for i in range(8)), *(f"val_{i:02d}" for i in range(4))]


def test_both_forms_of_an_image_need_it_read_once(binary_data, small_backbone, tmp_path, monkeypatch, passes):
    read = []
    real = dataset_module.read_image
    monkeypatch.setattr(dataset_module, "read_image", lambda path: read.append(path) or real(path))
    fit(config(binary_data, small_backbone, tmp_path / "run", augment="flip"))
    assert len(read) == 8 < len(passes) - 4


def test_only_what_the_run_will_see_is_computed(binary_data, small_backbone, tmp_path, passes):
    fit(config(binary_data, small_backbone, tmp_path / "run", augment="flip", max_steps=1))
    assert len(passes) == 4 + 4


def test_resuming_computes_nothing_anew(binary_data, small_backbone, tmp_path, passes, monkeypatch):
    fit(config(binary_data, small_backbone, tmp_path / "whole"))
    for file in files():
        file.unlink()
    real = fit_module._Run._after_step

    def cut(self, done):
        stop = real(self, done)
        if done == 3:
            raise RuntimeError("cut off")
        return stop

    monkeypatch.setattr(fit_module, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(fit_module._Run, "_after_step", cut)
    with pytest.raises(RuntimeError, match="cut off"):
        fit(config(binary_data, small_backbone, tmp_path / "cut"))
    monkeypatch.setattr(fit_module._Run, "_after_step", real)
    passes.clear()
    fit(config(binary_data, small_backbone, tmp_path / "cut"), resume=True)
    assert passes == []
    same_end(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("limit", ["0", "0.00005"])
def test_without_room_the_run_goes_on_to_the_same_end(
    binary_data, small_backbone, tmp_path, passes, monkeypatch, capsys, limit
):
    fit(config(binary_data, small_backbone, tmp_path / "kept"))
    monkeypatch.setenv("CONVLORA_CACHE", str(tmp_path / "small"))
    monkeypatch.setenv("CONVLORA_CACHE_GB", limit)
    few = len(passes)
    passes.clear()
    fit(config(binary_data, small_backbone, tmp_path / "full"))
    assert len(passes) > few
    assert capsys.readouterr().out.count("warning: no more embeddings are kept") == 1
    same_end(tmp_path / "kept", tmp_path / "full")


def test_a_wrong_limit_shows_before_the_run_begins(binary_data, small_backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVLORA_CACHE_GB", "all")
    with pytest.raises(ConfigError, match="CONVLORA_CACHE_GB is 'all'"):
        fit(config(binary_data, small_backbone, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_files_removed_during_the_run_are_computed_again(
    binary_data, small_backbone, tmp_path, passes, monkeypatch
):
    fit(config(binary_data, small_backbone, tmp_path / "kept"))
    whole = len(passes)
    real = fit_module.Loop._step

    def step(self, batches):
        for file in files() if self.done == 2 else []:
            file.write_bytes(file.read_bytes()[:-1])
        return real(self, batches)

    monkeypatch.setattr(fit_module.Loop, "_step", step)
    passes.clear()
    fit(config(binary_data, small_backbone, tmp_path / "other"))
    assert 0 < len(passes) <= whole
    same_end(tmp_path / "kept", tmp_path / "other")


def test_out_of_memory_in_the_encoder_is_a_message(binary_data, small_backbone, tmp_path, monkeypatch):
    def embed(self, image):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(Segmenter, "embed", embed)
    with pytest.raises(ConfigError, match=r"Out of memory with 1 image at once .*a smaller --im") as caught:
        fit(config(binary_data, small_backbone, tmp_path / "run"))
    assert "--checkpointing" not in str(caught.value)  # without a backward pass it saves nothing
    assert "decoder-only" not in str(caught.value)


@pytest.mark.parametrize("method", methods())
def test_only_a_method_that_leaves_the_encoder_alone_is_taken(small_backbone, method):
    """Untouched: its output is what the backbone gives, and nothing in it trains. LST is no such method."""
    plain = Segmenter.from_backbone(str(small_backbone), ("a", "b"), "decoder-only")
    model = Segmenter.from_backbone(str(small_backbone), ("a", "b"), method)
    trains = [name for name, p in model.encoder.named_parameters() if p.requires_grad]
    assert model.encoder_is_untouched == (not trains) == (method == "decoder-only")
    assert make_config({"data": "d", "out": "o", "method": method}).keeps_embeddings == (not trains)
    image = torch.randn(2, 3, 64, 64)
    if model.encoder_is_untouched:
        assert model.encoder.side_path is None
        assert model.encoder.state_dict().keys() == plain.encoder.state_dict().keys()
        for one, embedding in zip(image.split(1), model.embed(image), strict=True):
            assert torch.equal(plain.encoder(one)[0], embedding)


def test_embedded_and_plain_forward_agree_in_training_and_evaluation(small_backbone):
    model = Segmenter.from_backbone(str(small_backbone), ("a", "b"), "decoder-only")
    image = torch.randn(3, 3, 64, 64)
    kept = torch.stack([model.embed(one[None])[0].permute(1, 2, 0).contiguous() for one in image])
    for mode in (True, False):
        model.train(mode)
        batch = slice(0, 3 if mode else 1)
        plain, embedded = model(image[batch], [1, 2, 3][batch]), model(kept[batch], embedded=True)
        assert torch.equal(plain.mask_logits, embedded.mask_logits)
        assert not torch.equal(plain.mask_logits[0], model(kept[batch].flip(1), embedded=True).mask_logits[0])
    embedded.mask_logits.sum().backward()
    assert model.decoder.mask_tokens.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(("augment", "most"), [("none", 8), ("flip", 16)])
def test_variants_are_the_inputs_that_the_epochs_have(binary_data, augment, most):
    found = check_dataset(binary_data).dataset
    images = SegmentationDataset(
        found.splits["train"], found.encoding, 64, "pad", AugmentConfig.preset(augment), seed=5
    )
    embedded = EmbeddedImages(images, embeddings=None)
    epochs = list(orders(4, 4 + 8 * 11, 8, seed=5))
    assert [place(position, 8, 5) for position in range(4, 92)] == [
        (epoch, index) for epoch, order in epochs for index in order
    ]
    shown = {hash_tensor(images.get(index, epoch)["image"]) for epoch, order in epochs for index in order}
    variants = embedded.variants(epochs)
    assert {hash_tensor(images.get(index, epoch)["image"]) for index, epoch, _ in variants} == shown
    assert len(variants) == len(shown) == most
    flipped = {(index, flip) for index, _, flip in variants}
    assert len(flipped) == most


def test_masks_are_those_of_the_augmented_examples(binary_data):
    found = check_dataset(binary_data).dataset
    images = SegmentationDataset(
        found.splits["train"], found.encoding, 64, "pad", AugmentConfig.preset("flip"), seed=5
    )
    embedded = EmbeddedImages(images, embeddings=None)
    embedded.embedding = lambda index, epoch, flipped: None
    flips = 0
    for epoch in range(4):
        for index in range(8):
            mask = images.get(index, epoch)["mask"]
            assert torch.equal(embedded.get(index, epoch)["mask"].long(), mask)
            assert (mask == 255).any()
            flips += images.is_flipped(index, epoch)
    assert 0 < flips < 32
    assert len(images.kept) <= 1
