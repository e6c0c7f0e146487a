"""Backbones with every fault that we could think of; each ends in its own message."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from convlora.backbone.weights import load_sam
from convlora.errors import WeightsError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"


def set_config(folder, **changes):
    file = folder / "config.json"
    content = json.loads(file.read_text())
    for key, value in changes.items():
        section, _, name = key.partition("__")
        (content[section] if name else content).update({name or section: value})
    file.write_text(json.dumps(content))


def drop(folder, key):
    content = json.loads((folder / "config.json").read_text())
    del content[key]
    (folder / "config.json").write_text(json.dumps(content))


def shard(folder, missing):
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    if missing:
        (folder / "two.safetensors").unlink()


def poison_backbone(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors[min(tensors)].view(-1)[0] = float("inf")
    save_file(tensors, folder / "model.safetensors")


def only_pickle(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def put(folder, name, content):
    (folder / name).write_bytes(content)


BACKBONES = {
    "whole shards": (lambda f: shard(f, missing=False), None),
    "a shard missing": (
        lambda f: shard(f, missing=True),
        r"two\.safetensors does not exist\. Download the whole",
    ),
    "index is no JSON": (
        lambda f: put(f, "model.safetensors.index.json", b"{"),
        r"index\.json is damaged: it is not valid JSON",
    ),
    "index is empty": (
        lambda f: put(f, "model.safetensors.index.json", b"{}"),
        r"index\.json lists no files under 'weight_map'",
    ),
    "truncated": (
        lambda f: put(f, "model.safetensors", (f / "model.safetensors").read_bytes()[:-5]),
        r"model\.safetensors is damaged, perhaps cut off .*Download the whole",
    ),
    "git-lfs": (lambda f: put(f, "model.safetensors", LFS), r"is a pointer of Git LFS, .*git lfs pull"),
    "git-lfs configuration": (lambda f: put(f, "config.json", LFS), r"config\.json is a pointer of Git LFS"),
    "sam2": (lambda f: set_config(f, model_type="sam2"), r"model of type 'sam2'; only 'sam'"),
    "bert": (lambda f: set_config(f, model_type="bert"), r"model of type 'bert'; only 'sam'"),
    "no model_type": (lambda f: drop(f, "model_type"), r"a model without 'model_type'; only 'sam'"),
    "no vision_config": (lambda f: drop(f, "vision_config"), r"lacks the key 'vision_config'"),
    "vision_config is a number": (lambda f: set_config(f, vision_config=3), r"vision_config is 3; .*object"),
    "width is a word": (
        lambda f: set_config(f, vision_config__hidden_size="wide"),
        r"config\.json: vision_config\.hidden_size is 'wide'; it must be a whole number",
    ),
    "width that heads do not divide": (
        lambda f: set_config(f, vision_config__num_attention_heads=5),
        r"sam describes a SAM that cannot work: the encoder has 32 channels for 5 heads",
    ),
    "no heads": (lambda f: set_config(f, vision_config__num_attention_heads=0), r"num_attention_heads is 0"),
    "list": (lambda f: put(f, "config.json", b"[]"), r"config\.json holds a JSON list"),
    "infinite": (poison_backbone, r"no finite numbers in 1 tensors, first"),
    "pickle only": (
        only_pickle,
        r"holds pytorch_model\.bin, a pickle.*not opened, and no model",
    ),
}


@pytest.mark.parametrize("fault", BACKBONES)
def test_backbone_folder(small_backbone, tmp_path, fault):
    folder = shutil.copytree(small_backbone, tmp_path / "sam")
    break_it, message = BACKBONES[fault]
    break_it(folder)
    if message is None:
        assert load_sam(folder).fingerprint == load_sam(small_backbone).fingerprint
        return
    with pytest.raises(WeightsError, match=f"(?s){message}") as error:
        load_sam(folder)
    assert str(folder) in str(error.value)


def test_backbone_file(small_backbone, tmp_path):
    with pytest.raises(WeightsError, match=r"safetensors is a file\. Give the folder that holds"):
        load_sam(small_backbone / "model.safetensors")
    (tmp_path / "sam.pth").write_bytes(LFS)
    with pytest.raises(WeightsError, match=r"sam\.pth is a pointer of Git LFS"):
        load_sam(tmp_path / "sam.pth")


class _Code:
    def __reduce__(self):
        return (print, ("this must never run",))


def test_pickled_code_does_not_run(tmp_path, capsys):
    torch.save({"a": _Code()}, tmp_path / "sam.pth")
    with pytest.raises(WeightsError, match=r"files that hold anything but tensors are refused"):
        load_sam(tmp_path / "sam.pth")
    assert "never run" not in capsys.readouterr().out
