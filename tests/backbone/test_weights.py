"""Weights from every source, strictly; and what a user reads when they do not fit."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from sam_pairs import SPEC, assert_close, ours, transformers_sam
from transformers import SamModel

from convlora.backbone.initialise import random_sam
from convlora.backbone.presets import BACKBONES, SAM_TINY
from convlora.backbone.spec_io import check_spec, spec_from_config, spec_to_config
from convlora.backbone.weights import BUNDLED, fingerprint, load_sam, save_sam
from convlora.checkpoint import from_pretrained
from convlora.errors import WeightsError

IMAGE = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
CLICK = (torch.tensor([[[[40.0, 70.0]]]]), torch.ones(1, 1, 1, dtype=torch.long))


@pytest.fixture(scope="module")
def theirs():
    return transformers_sam()


@pytest.fixture
def folder(theirs, tmp_path):
    theirs.save_pretrained(tmp_path / "sam")
    return tmp_path / "sam"


@pytest.fixture
def meta_file(theirs, tmp_path):
    torch.save(ours(theirs).state_dict(), tmp_path / "sam_small.pth")
    return tmp_path / "sam_small.pth"


def test_folder_that_transformers_wrote(theirs, folder):
    loaded = load_sam(folder)
    assert loaded.sam.spec == spec_from_config(theirs.config.to_dict(), folder)
    with torch.no_grad():
        want = theirs(pixel_values=IMAGE, input_points=CLICK[0], input_labels=CLICK[1])
        assert_close(loaded.sam(IMAGE, *CLICK)[0], want.pred_masks)


def test_sharded_folder(theirs, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert load_sam(tmp_path).fingerprint == fingerprint(ours(theirs).state_dict())


def test_meta_file_gives_the_same_model(folder, meta_file):
    a, b = load_sam(folder), load_sam(meta_file)
    assert a.fingerprint == b.fingerprint
    assert b.sam.spec.encoder == SPEC.encoder.__class__(**{**vars(SPEC.encoder), "mlp_dim": 192})
    with torch.no_grad():
        # num_heads of the decoder is in no shape; Meta's models have 8, this one 4
        assert torch.equal(a.sam.image_encoder(IMAGE), b.sam.image_encoder(IMAGE))


def test_what_we_save_transformers_loads(theirs, tmp_path):
    save_sam(ours(theirs), tmp_path)
    model = SamModel.from_pretrained(tmp_path)
    with torch.no_grad():
        want = theirs(pixel_values=IMAGE, input_points=CLICK[0], input_labels=CLICK[1])
        got = model(pixel_values=IMAGE, input_points=CLICK[0], input_labels=CLICK[1])
    assert_close(got.pred_masks, want.pred_masks, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_files_load_as_fp32(theirs, tmp_path, dtype):
    sam = ours(theirs)
    save_sam(sam, tmp_path, dtype)
    loaded = load_sam(tmp_path).sam.state_dict()
    assert all(torch.equal(loaded[name], t.to(dtype).float()) for name, t in sam.state_dict().items())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_weights_that_cannot_be_written(tmp_path, name):
    (tmp_path / name).mkdir()  # in the way of the file
    told = re.escape(f"{tmp_path} cannot be written: [Errno ") + ".* What was there before is kept; make room"
    with pytest.raises(WeightsError, match=told):
        save_sam(random_sam(SPEC), tmp_path)
    assert not [file for file in tmp_path.iterdir() if file.name.endswith("part")]


@pytest.mark.parametrize("spec", [SPEC, *BACKBONES.values()])
def test_numbers_survive_config_json(spec, tmp_path):
    config = json.loads(json.dumps(spec_to_config(spec)))
    back = spec_from_config(config, tmp_path)
    assert spec_to_config(back) == config
    assert back.encoder.hidden_mlp_dim == spec.encoder.hidden_mlp_dim


def test_bundled_backbone():
    loaded = load_sam("sam-tiny")
    assert loaded.sam.spec.encoder.embed_dim == SAM_TINY.encoder.embed_dim
    count = sum(p.numel() for p in loaded.sam.parameters())
    assert 4e6 <= count <= 8e6
    assert (BUNDLED / "model.safetensors").stat().st_size <= 20e6
    assert {t.dtype for t in load_file(BUNDLED / "model.safetensors").values()} == {torch.float16}
    assert loaded.fingerprint != load_sam("random:sam-tiny").fingerprint


def test_random_is_the_same_every_time_and_leaves_the_random_state():
    state = torch.random.get_rng_state()
    a, b = random_sam(SPEC), random_sam(SPEC)
    assert torch.equal(state, torch.random.get_rng_state())
    assert fingerprint(a.state_dict()) == fingerprint(b.state_dict())
    assert fingerprint(random_sam(SPEC, seed=1).state_dict()) != fingerprint(a.state_dict())


def test_fingerprint_sees_any_tensor_change():
    state = random_sam(SPEC).state_dict()
    before = fingerprint(state)
    for name in ("mask_decoder.iou_token.weight", "image_encoder.blocks.2.attn.qkv.bias"):
        changed = dict(state)
        changed[name] = state[name] + 1
        assert fingerprint(changed) != before


def _damage(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_groups_of_bad_tensors_are_listed(folder):
    def change(tensors):
        del tensors["vision_encoder.layers.0.attn.qkv.weight"]
        tensors["vision_encoder.surprise"] = torch.zeros(1)
        tensors["vision_encoder.pos_embed"] = torch.zeros(1, 9, 9, 48)

    _damage(folder, change)
    with pytest.raises(WeightsError) as error:
        load_sam(folder)
    text = str(error.value)
    assert "1 missing: image_encoder.blocks.0.attn.qkv.weight" in text
    assert "1 unexpected: vision_encoder.surprise" in text
    assert "1 of another shape: image_encoder.pos_embed: (1, 9, 9, 48) instead of (1, 10, 10, 48)" in text
    assert "nothing was loaded" in text


def test_a_tied_tensor_under_both_names_must_be_one(theirs, folder):
    tied = theirs.shared_image_embedding.positional_embedding.detach()
    name = "prompt_encoder.shared_embedding.positional_embedding"
    _damage(folder, lambda tensors: tensors.update({name: tied.clone()}))
    assert load_sam(folder).fingerprint == fingerprint(ours(theirs).state_dict())
    _damage(folder, lambda tensors: tensors.update({name: tied + 1}))
    with pytest.raises(WeightsError, match=r"gaussian_matrix under two names, the second"):
        load_sam(folder)


def test_long_lists_are_cut(folder):
    _damage(folder, lambda tensors: [tensors.pop(k) for k in list(tensors) if "layers.0" in k])
    with pytest.raises(WeightsError, match=r"missing: .*, and \d+ more"):
        load_sam(folder)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "is not valid JSON"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "sam2"}'),
            "model of type 'sam2'; only 'sam'",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "does not exist. Download the whole"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 50), "is damaged"),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
            "is damaged",
        ),
    ],
    ids=["no config", "bad json", "other model", "no tensors", "garbage", "cut off"],
)
def test_broken_folders(folder, break_it, message):
    break_it(folder)
    with pytest.raises(WeightsError, match=message):
        load_sam(folder)


class _NotATensor:
    pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "best": torch.zeros(1)}, r"holds no table of tensors; it must hold one"),
        (
            {"model": {"a": torch.zeros(1)}, "model_ema": {"a": torch.zeros(1)}},
            r"holds 2 tables of tensors \(model, model_ema\); it must hold one",
        ),
        ({"a": torch.zeros(1)}, "has no tensor 'image_encoder.patch_embed.proj.weight'"),
        ({"a": _NotATensor()}, "cannot be read as tensors"),
        ({0: torch.zeros(1)}, "holds no table of tensors"),
        ({}, "holds no table of tensors"),
        ([torch.zeros(1)], "holds no table of tensors"),
    ],
    ids=["no model", "two models", "other model", "pickled object", "numbered", "empty", "list"],
)
def test_broken_meta_files(tmp_path, content, message):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=message):
        load_sam(tmp_path / "x.pth")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"model": t, "optimizer": {"state": {0: {"step": torch.ones(())}}}, "epoch": 3},
        lambda t: {f"module.{name}": tensor for name, tensor in t.items()},
        lambda t: {"state_dict": {f"module.sam.{name}": tensor for name, tensor in t.items()}},
    ],
    ids=["training checkpoint", "DDP", "wrapped"],
)
def test_meta_file_that_was_trained_on(meta_file, tmp_path, wrap):
    torch.save(wrap(torch.load(meta_file)), tmp_path / "trained.pth")
    assert load_sam(tmp_path / "trained.pth").fingerprint == load_sam(meta_file).fingerprint


def test_tensors_beside_those_of_sam_are_refused_by_name(meta_file):
    tensors = {f"sam.{name}": tensor for name, tensor in torch.load(meta_file).items()}
    torch.save({**tensors, "lora.w_a.weight": torch.zeros(1)}, meta_file)
    with pytest.raises(WeightsError, match=r"1 unexpected: lora\.w_a\.weight"):
        load_sam(meta_file)
    name = "mask_decoder.iou_token.weight"
    torch.save({**tensors, name: tensors[f"sam.{name}"] + 1}, meta_file)  # two that would be one
    with pytest.raises(WeightsError, match=r"has no tensor 'image_encoder\.patch_embed\.proj\.weight'"):
        load_sam(meta_file)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("vision_config", "hidden_act", "relu"),
        ("vision_config", "layer_norm_eps", 1e-5),
        ("vision_config", "num_channels", 4),
        ("prompt_encoder_config", "hidden_act", "gelu_new"),
        ("prompt_encoder_config", "layer_norm_eps", 1e-5),
        ("prompt_encoder_config", "num_point_embeddings", 6),
        ("mask_decoder_config", "hidden_act", "gelu"),
        ("mask_decoder_config", "layer_norm_eps", 1e-5),
    ],
)
def test_values_that_are_not_implemented_are_refused(folder, section, key, value):
    """The tensors of most of them fit all the same."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert key in config[section]  # transformers writes it, and reads it
    config[section][key] = value
    with pytest.raises(WeightsError, match=rf"{section}\.{key} is {value!r}; only .* is implemented"):
        spec_from_config(config, folder / "config.json")


@pytest.mark.parametrize(
    ("part", "changed", "message"),
    [
        ("encoder", {"out_channels": 48}, "gives 48 channels and the mask decoder takes 32"),
        ("encoder", {"num_heads": 5}, "has 48 channels for 5 heads"),
        ("decoder", {"num_heads": 32}, "has 32 and 16 channels for 32 heads"),
        ("decoder", {"attention_downsample_rate": 64}, "has 32 and 0 channels for 4 heads"),
    ],
)
def test_parts_that_do_not_fit_each_other(tmp_path, part, changed, message):
    spec = replace(SPEC, **{part: replace(getattr(SPEC, part), **changed)})
    with pytest.raises(WeightsError, match=f"describes a SAM that cannot work: the .* {message}"):
        check_spec(spec, tmp_path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("image_encoder.pos_embed", (1, 10, 10, 10, 48)),  # of volumes
        ("image_encoder.patch_embed.proj.weight", ()),
        ("image_encoder.blocks.0.attn.rel_pos_h", (7, 0)),
        ("mask_decoder.mask_tokens.weight", (48,)),
    ],
)
def test_meta_file_with_the_axes_of_another_model(meta_file, name, shape):
    tensors = torch.load(meta_file)
    assert name in tensors
    torch.save({**tensors, name: torch.zeros(shape)}, meta_file)
    with pytest.raises(WeightsError, match=r"sam_small\.pth has the names of a SAM checkpoint, but not its"):
        load_sam(meta_file)


def test_meta_file_without_its_first_block(meta_file):
    tensors = torch.load(meta_file)
    torch.save({name: t for name, t in tensors.items() if ".blocks.0." not in name}, meta_file)
    with pytest.raises(WeightsError, match=r"has no tensor 'image_encoder\.blocks\.0\.attn\.rel_pos_h'"):
        load_sam(meta_file)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_quantised_weights_are_refused(folder, dtype):
    name = "vision_encoder.layers.0.attn.qkv.weight"
    _damage(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    with pytest.raises(WeightsError, match=rf"holds {dtype} in 1 tensors, first image_encoder\.blocks\.0"):
        load_sam(folder)


def test_meta_file_that_is_not_there(tmp_path):
    with pytest.raises(WeightsError, match=re.escape(f"{tmp_path / 'no.pth'} does not exist")):
        load_sam(tmp_path / "no.pth")


def test_unknown_name_without_network(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        WeightsError, match=r"(?s)'facebook/sam-vit-bse' is not a preset.*could not be fetched"
    ):
        load_sam("facebook/sam-vit-bse")


def test_hub_id_reads_the_cache(theirs, folder, monkeypatch):
    """A hub id goes through huggingface_hub's snapshot_download; here it answers from the disk."""
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, **options: asked.append((name, options)) or str(folder),
    )
    loaded = load_sam("facebook/sam-vit-base")
    assert loaded.source == "facebook/sam-vit-base"
    assert asked[0][0] == "facebook/sam-vit-base"
    assert set(asked[0][1]["allow_patterns"]) == {
        "config.json",
        "*.safetensors",
        "model.safetensors.index.json",
    }


class _LostError(Exception):
    """As httpx's errors, no OSError."""


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (_LostError(), "_LostError"),
        (RuntimeError("Data processing error: CAS service\nmore"), "Data processing error"),
    ],
    ids=["http", "storage"],
)
@pytest.mark.parametrize("load", [load_sam, from_pretrained])
def test_connection_lost_in_a_download(monkeypatch, load, raised, told):
    """What huggingface_hub lets pass from its HTTP library, and from hf_xet."""

    def snapshot_download(name, allow_patterns):
        raise raised

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(WeightsError, match=rf"(?s)'someone/sam' is no.* hub.*:\n  {told}[^\n]*\nCheck"):
        load("someone/sam")


def test_unknown_preset():
    with pytest.raises(WeightsError, match=r"random:vit_x names no preset\. The presets are: sam-tiny"):
        load_sam("random:vit_x")
