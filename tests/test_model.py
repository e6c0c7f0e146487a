"""The assembled model: what is trained, the paper's counts, outputs for every head and method."""

import copy
import pickle

import pytest
import torch

from convlora.adapters import ConvLora, Lora, methods, trainable_parameters
from convlora.errors import ConfigError
from convlora.model import Segmenter, count_on_preset, foreground_ids

HUGE = "facebook/sam-vit-huge"


def build(backbone, classes=("background", "disc"), method="conv-lora", **options) -> Segmenter:
    return Segmenter.from_backbone(str(backbone), classes, method, **options)


@pytest.mark.parametrize(
    ("backbone", "method", "trained"),
    [
        # The paper's 4.02 M, 4.00 M and 3.51 M at ViT-H; the others by the same arithmetic.
        (HUGE, "conv-lora", 4_020_096),
        (HUGE, "lora", 3_997_056),
        (HUGE, "decoder-only", 3_505_536),
        ("facebook/sam-vit-large", "conv-lora", 3_817_728),
        ("facebook/sam-vit-base", "conv-lora", 3_624_768),
        ("facebook/sam-vit-base", "lora", 3_616_128),
    ],
)
def test_trained_parameters_are_the_papers(backbone, method, trained):
    assert count_on_preset(backbone, method).trainable == trained


def test_unknown_preset():
    with pytest.raises(ConfigError, match="'vit' is no preset"):
        count_on_preset("vit", "lora")


@pytest.mark.parametrize("method", methods())
def test_only_encoder_adapters_decoder_and_head_are_trained(small_backbone, method):
    names = set(trainable_parameters(build(small_backbone, method=method)))
    assert not any(name.startswith("prompts.") for name in names)
    assert not any("iou_prediction_head" in name for name in names)
    assert "decoder.mask_tokens.weight" in names
    in_encoder = {name for name in names if name.startswith("encoder.")}
    assert (len(in_encoder) > 0) == (method != "decoder-only")
    if method in {"lora", "conv-lora"}:
        assert all(".attn.qkv." in name for name in in_encoder)


@pytest.mark.parametrize(
    ("classes", "head", "masks", "shape"),
    [
        (("background", "disc"), None, None, (2, 1, 32, 32)),
        (("background", "disc", "bar"), None, None, (2, 3, 32, 32)),
        (("background", "disc", "bar"), "mask-classification", 5, (2, 5, 32, 32)),
    ],
)
def test_outputs_and_gradients(small_backbone, classes, head, masks, shape):
    model = build(small_backbone, classes, head=head, num_masks=masks).train()
    output = model(torch.randn(2, 3, 64, 64))
    assert output.mask_logits.shape == shape
    assert (output.class_logits is None) == (head is None)
    loss = output.mask_logits.square().mean() + model.auxiliary_loss()
    if output.class_logits is not None:
        assert output.class_logits.shape == (2, 5, 4)
        loss = loss + output.class_logits.square().mean()
    loss.backward()
    # B of the low-rank pair starts at zero: at the first step A and the experts get zeros, not None
    without = [name for name, p in trainable_parameters(model).items() if p.grad is None]
    assert without == []
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_no_gradient_passes_the_encoder_without_need(small_backbone):
    """decoder-only has no graph there; LST's ends at its own network, also where the blocks take one."""
    image = torch.randn(1, 3, 64, 64)
    assert not build(small_backbone, method="decoder-only").train().encoder(image).requires_grad
    for method, reached in (("lst", False), ("sam-adapter", True)):
        model = build(small_backbone, method=method).train()
        torch.nn.init.normal_(model.encoder.side_path.up.weight)
        model.encoder.blocks.requires_grad_(True)
        model(image).mask_logits.sum().backward()
        assert any(p.grad is not None for p in model.encoder.blocks.parameters()) == reached
        assert all(p.grad is not None for p in model.encoder.side_path.parameters())


def test_balance_loss_only_in_training(small_backbone):
    model = build(small_backbone)
    model.train()(torch.randn(2, 3, 64, 64))
    assert model.auxiliary_loss() > 0
    model.eval()(torch.randn(2, 3, 64, 64))
    assert model.auxiliary_loss() is None
    lora = build(small_backbone, method="lora").train()
    lora(torch.randn(1, 3, 64, 64))
    assert lora.auxiliary_loss() is None


def test_method_object_and_name_are_the_same(small_backbone):
    by_name, by_object = build(small_backbone), build(small_backbone, method=ConvLora())
    assert by_name.config == by_object.config
    assert build(small_backbone, method=Lora(rank=5)).config.method_options["rank"] == 5


def test_same_seed_same_model_and_random_state_untouched(small_backbone):
    state = torch.random.get_rng_state()
    a, b, c = build(small_backbone, seed=1), build(small_backbone, seed=1), build(small_backbone, seed=2)
    assert torch.equal(state, torch.random.get_rng_state())
    same = [torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    other = [torch.equal(p, q) for p, q in zip(a.parameters(), c.parameters(), strict=True)]
    assert all(same)
    assert not all(other)


def test_copies_and_pickles_after_a_training_step(small_backbone):
    model = build(small_backbone).train()
    model(torch.randn(1, 3, 64, 64))
    image = torch.randn(1, 3, 64, 48)
    want = model.eval()(image).mask_logits
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(image).mask_logits, want)


@pytest.mark.parametrize("size", [60, 4, -8])
def test_image_size_must_fit_the_patch(small_backbone, size):
    with pytest.raises(ConfigError, match=rf"image_size is {size}; .* the backbone's patch size 8. Use \d+"):
        build(small_backbone, image_size=size)


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (("a", "b", "a"), {}, "The class 'a' is there twice"),
        (tuple(map(str, range(256))), {}, "There are 256 classes; at most 255"),
        (("a", "b"), {"resize": "crop"}, "resize is 'crop'; it must be one of pad, stretch"),
    ],
    ids=["twice", "many", "resize"],
)
def test_what_no_adapter_folder_could_hold_is_refused(small_backbone, classes, options, message):
    with pytest.raises(ConfigError, match=message):
        build(small_backbone, classes, **options)


@pytest.mark.parametrize("classes", ["road", ("road",), (), 5, None, ("road", 3)], ids=repr)
def test_classes_are_names(small_backbone, classes):
    with pytest.raises(ConfigError, match=r"^classes is .*; it must be a list of 2 to 255 names, id 0 first"):
        build(small_backbone, classes)
    assert build(small_backbone, (name for name in "ab")).config.classes == ("a", "b")


@pytest.mark.parametrize(
    ("classes", "ids"),
    [
        (("no", "yes"), (1,)),
        (("Background", "a", "b"), (1, 2)),
        (("sky", "road", "car"), (0, 1, 2)),
    ],
)
def test_foreground(classes, ids):
    assert foreground_ids(classes) == ids


def test_decoding_is_sams_decoder_on_the_no_mask_embedding(small_backbone):
    model = build(small_backbone).eval()
    image = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        embedding = model.encoder(image)
        positions = model.prompts.image_positions(8, 6)
        decoded = model.decoder.decode(
            embedding + model.prompts.no_mask_embed.weight[..., None, None], positions
        )
        before = model(image).mask_logits
        assert torch.equal(before, model.decoder.masks(decoded))
        model.prompts.no_mask_embed.weight += 1
        assert not torch.allclose(model(image).mask_logits, before)
