"""Adapter folders with every fault that we could think of; each ends in its own message."""

import hashlib
import json
import shutil
import sys
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from convlora.adapters import trainable_parameters
from convlora.backbone.initialise import random_sam
from convlora.backbone.presets import DecoderSpec, EncoderSpec, SamSpec
from convlora.backbone.weights import save_sam
from convlora.checkpoint import CONFIG, TENSORS, from_pretrained, save_pretrained
from convlora.cli import main
from convlora.errors import WeightsError
from convlora.model import Segmenter
from small import SMALL

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"
WIDER = SamSpec(
    EncoderSpec(48, 1, 2, (0,), image_size=64, patch_size=8, window_size=4, out_channels=32),
    DecoderSpec(dim=32, mlp_dim=64, num_heads=4, iou_head_hidden_dim=32),
)


@pytest.fixture(scope="module")
def good(small_backbone, tmp_path_factory):
    """A run folder with an adapter of rank 3 for three classes, whose backbone lies beside it."""
    run = tmp_path_factory.mktemp("good")
    shutil.copytree(small_backbone, run / "backbone")
    model = Segmenter.from_backbone(str(run / "backbone"), ("background", "a", "b"))
    save_pretrained(model, run / "best")
    return run


@pytest.fixture
def run(good, tmp_path):
    """A copy; its adapter names the copy of the backbone."""
    shutil.copytree(good, tmp_path / "run")
    edit(tmp_path / "run", backbone=str(tmp_path / "run" / "backbone"))
    return tmp_path / "run"


def edit(run, *without, **changes):
    file = run / "best" / CONFIG
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if k not in without}))


def change_tensors(run, change, record=True):
    """Change the tensors; with `record`, put the new hash into the configuration: a fault made on purpose."""
    file = run / "best" / TENSORS
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    if record:
        edit(run, sha256=hashlib.sha256(file.read_bytes()).hexdigest())


def write(run, name, content):
    (run / "best" / name).write_bytes(content)


def as_folder(run, name):
    (run / "best" / name).unlink()
    (run / "best" / name).mkdir()


def flip(run):
    file = run / "best" / TENSORS
    content = bytearray(file.read_bytes())
    content[-7] ^= 1
    file.write_bytes(content)


def cut(run):
    file = run / "best" / TENSORS
    file.write_bytes(file.read_bytes()[:-9])


def other_backbone(run, spec, seed):
    shutil.rmtree(run / "backbone")
    save_sam(random_sam(spec, seed), run / "backbone")


def poison(tensors):
    tensors["decoder.iou_token.weight"][0, 3] = float("nan")


def pickle_as_safetensors(run):
    torch.save({"a": torch.zeros(1)}, run / "best" / TENSORS)


ADAPTERS = {
    "intact": (lambda r: None, None),
    "other weights of the backbone": (
        lambda r: other_backbone(r, SMALL, 7),
        r"was trained on the backbone .* with fingerprint \w{16}, but .* has \w{16}\. .*with --backbone",
    ),
    "other architecture of the backbone": (
        lambda r: other_backbone(r, WIDER, 0),
        r"with fingerprint \w{16}, but .* has \w{16}\..*with --backbone",
    ),
    "backbone gone": (
        lambda r: shutil.rmtree(r / "backbone"),
        r"The backbone of .*best cannot be loaded.*say where with --backbone",
    ),
    "relative backbone, moved": (
        lambda r: edit(r, backbone="models/sam"),
        r"The backbone of .*best cannot be loaded\. The backbone 'models/sam' is not .*with --backbone",
    ),
    "other class count": (
        lambda r: edit(r, classes=["background", "a", "b", "c"]),
        r"says method conv-lora, .*4 classes.*mask_tokens",
    ),
    "other method": (
        lambda r: edit(r, method="lora", method_options={}),
        r"says method lora.*unexpected.*experts",
    ),
    "other rank": (
        lambda r: edit(r, method_options={"rank": 5}),
        r"'rank': 5.*misshapen.*expected \(5, 32\)",
    ),
    "tensor missing": (
        lambda r: change_tensors(r, lambda t: t.pop("decoder.iou_token.weight")),
        r"missing \(1\): decoder\.iou_token\.weight",
    ),
    "tensor too many": (
        lambda r: change_tensors(r, lambda t: t.update(extra=torch.zeros(2))),
        r"unexpected \(1\): extra",
    ),
    "truncated": (cut, r"adapter_model\.safetensors is damaged, perhaps cut off \(.*Copy the whole adapter"),
    "empty tensors": (lambda r: write(r, TENSORS, b""), r"safetensors is damaged, .*it is empty"),
    "one bit": (flip, r"is damaged, or not the file that adapter_config\.json was saved with"),
    "tensors of another save": (
        lambda r: change_tensors(r, lambda t: t["decoder.iou_token.weight"].add_(1), record=False),
        r"not the file that adapter_config\.json was saved with",
    ),
    "NaN": (
        lambda r: change_tensors(r, poison),
        r"decoder\.iou_token\.weight holds numbers that are not finite.*lower --lr",
    ),
    "unknown key": (lambda r: edit(r, imagesize=64), r"'imagesize' is no key\. Did you mean 'image_size'\?"),
    "key missing": (lambda r: edit(r, "resize"), r"edited:\n  'resize' is missing"),
    "classes is a number": (lambda r: edit(r, classes=3), r"classes is 3: .*array"),
    "a class twice": (
        lambda r: edit(r, classes=["a", "a", "b"]),
        r"classes is .*: .*the names must be different",
    ),
    "image_size is a word": (lambda r: edit(r, image_size="big"), r"image_size is 'big': .*integer"),
    "image_size odd": (lambda r: edit(r, image_size=60), r"image_size is 60; .*multiple of .*patch size 8"),
    "negative rank": (lambda r: edit(r, method_options={"rank": -3}), r"rank must be .*, got -3"),
    "unknown method": (lambda r: edit(r, method="conv-lore"), r"'conv-lore'\. Did you mean 'conv-lora'\?"),
    "unknown option": (lambda r: edit(r, method_options={"rnk": 3}), r"'rnk'\. Did you mean 'rank'\?"),
    "unknown head": (
        lambda r: edit(r, head="linear"),
        r"head is 'linear': .*'binary', 'per-class' or",
    ),
    "head of another count": (lambda r: edit(r, head="binary"), r"does not fit its backbone: .*binary"),
    "unknown resize": (lambda r: edit(r, resize="crop"), r"resize is 'crop': .*pad.*stretch"),
    "format missing": (
        lambda r: edit(r, "format"),
        r"not an adapter configuration of convlora: its 'format' is None",
    ),
    "format is a word": (
        lambda r: edit(r, format="1"),
        r"convlora: its 'format' is '1', not a number",
    ),
    "newer format": (
        lambda r: edit(r, format=9, convlora_version="7.0", new_key=1),
        r"written by convlora 7\.0, in format 9; .* reads up to 1\. Upgrade: pip install -U convlora",
    ),
    "empty configuration": (lambda r: write(r, CONFIG, b""), r"not valid JSON \(it is empty\)\. Copy"),
    "half a configuration": (
        lambda r: write(r, CONFIG, b'{"format": 1'),
        r"is damaged: it is not valid JSON",
    ),
    "configuration not UTF-8": (
        lambda r: write(r, CONFIG, b'{"\xff": 1}'),
        r"is damaged: it is not valid JSON",
    ),
    "JSON list": (lambda r: write(r, CONFIG, b"[1]"), r"holds a JSON list, not an object"),
    "empty object": (lambda r: write(r, CONFIG, b"{}"), r"its 'format' is None"),
    "configuration is a folder": (
        lambda r: as_folder(r, CONFIG),
        r"holds no adapter_config\.json",
    ),
    "tensors are a folder": (lambda r: as_folder(r, TENSORS), r"safetensors is a folder; it must be"),
    "tensors gone": (
        lambda r: (r / "best" / TENSORS).unlink(),
        r"safetensors does not exist\. Copy the whole",
    ),
    "git-lfs tensors": (lambda r: write(r, TENSORS, LFS), r"is a pointer of Git LFS.*git lfs pull"),
    "git-lfs configuration": (
        lambda r: write(r, CONFIG, LFS),
        r"json is a pointer of Git LFS",
    ),
    "git-lfs backbone": (
        lambda r: (r / "backbone" / "model.safetensors").write_bytes(LFS),
        r"model\.safetensors is a pointer of Git LFS.*git lfs pull",
    ),
    "pickle under our name": (pickle_as_safetensors, r"is a pickle, .*it is not opened"),
    "peft": (
        lambda r: write(r, CONFIG, b'{"peft_type": "LORA", "r": 8}'),
        r"belongs to an adapter of the library peft \(LORA\)",
    ),
}


@pytest.mark.parametrize("fault", ADAPTERS)
def test_adapter_folder(run, fault):
    break_it, message = ADAPTERS[fault]
    break_it(run)
    if message is None:
        assert from_pretrained(run).config.method == "conv-lora"
        return
    with pytest.raises(WeightsError, match=f"(?s){message}") as error:
        from_pretrained(run)
    assert str(run) in str(error.value)


def archive(run):
    with zipfile.ZipFile(run / "adapter.zip", "w") as file:
        file.write(run / "best" / CONFIG, CONFIG)
    return run / "adapter.zip"


def without_best(run):
    shutil.rmtree(run / "best")
    (run / "config.yaml").write_text("data: x\n")
    return run


def checkpoint(run, name):
    torch.save({"a": torch.zeros(1)}, run / name)
    return run / name


SOURCES = {
    "tensors as path": (
        lambda r: r / "best" / TENSORS,
        r"is a file of an adapter folder\. Give the folder, .*best",
    ),
    "configuration as path": (lambda r: r / "best" / CONFIG, r"Give the folder, "),
    "zip": (archive, r"adapter\.zip is a zip file\. Unpack it"),
    "pth": (
        lambda r: checkpoint(r, "sam.pth"),
        r"sam\.pth may hold pickled code.*Give the adapter folder",
    ),
    "bin": (lambda r: checkpoint(r, "adapter_model.bin"), r"may hold pickled code, which is never loaded"),
    "text": (lambda r: r / "best" / "README.md", r"README\.md is a file\. Give the adapter folder"),
    "no best yet": (
        without_best,
        r"has not finished its first validation.*--resume",
    ),
    "backbone": (lambda r: r / "backbone", r"looks like a backbone, which goes to --backbone"),
    "hub id": (lambda r: "someone/no-such-adapter", r"is no folder that exists here, .*Check the path"),
}


@pytest.mark.parametrize("fault", SOURCES)
def test_what_is_no_adapter_folder(run, fault, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    make, message = SOURCES[fault]
    with pytest.raises(WeightsError, match=f"(?s){message}"):
        from_pretrained(make(run))


@pytest.mark.parametrize("fault", ["one bit", "negative rank", "git-lfs tensors", "peft", "backbone gone"])
def test_on_the_command_line(run, fault, monkeypatch, capsys, binary_data, tmp_path):
    ADAPTERS[fault][0](run)
    images = binary_data / "test" / "images"
    arguments = ["convlora", "predict", run, images, "--out", tmp_path / "masks"]
    monkeypatch.setattr(sys, "argv", [str(a) for a in arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error


def test_a_diverged_model_is_not_saved(good, tmp_path):
    model = Segmenter.from_backbone(str(good / "backbone"), ("background", "a"), "decoder-only")
    save_pretrained(model, tmp_path / "last")
    before = (tmp_path / "last" / TENSORS).read_bytes()
    with torch.no_grad():
        next(iter(trainable_parameters(model).values())).fill_(float("nan"))
    with pytest.raises(WeightsError, match=r"not finite; the training had diverged.* lower --lr"):
        save_pretrained(model, tmp_path / "last")
    assert (tmp_path / "last" / TENSORS).read_bytes() == before
    assert [file.name for file in tmp_path.iterdir() if "last" in file.name] == ["last"]
