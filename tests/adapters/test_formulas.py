"""Every method against its equation, written out on the encoder's parts."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from convlora.adapters import (
    Adapter,
    BitFit,
    Lora,
    Lst,
    SamAdapter,
    Ssf,
    Vpt,
    auxiliary_loss,
    build_method,
    install,
    merge,
)
from convlora.adapters.bottleneck import Bottleneck
from convlora.adapters.inject import set_side_path, trainable_parameters
from convlora.adapters.sam_adapter import high_frequencies
from convlora.adapters.ssf import ScaledShifted
from convlora.adapters.vpt import PromptTokens
from convlora.errors import ConfigError, TargetError


@pytest.fixture
def image():
    return torch.randn(2, 3, 12, 16, dtype=torch.float64)


@pytest.fixture
def adapted(make_encoder):
    """Encoder with the method and random trained parameters, and a copy of it before."""

    def make(method, dim=8, windows=(3, 0)):
        encoder = make_encoder(dim, windows).double()
        original = copy.deepcopy(encoder)
        for parameter in install(encoder, method):
            torch.nn.init.normal_(parameter, std=0.3)
        return encoder, original

    return make


def assert_same(encoder, image, expected):
    """Outputs and gradients of every trained parameter; 1e-9 is the rounding of doubles."""
    trained = list(trainable_parameters(encoder).values())
    out = encoder(image)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-11)
    for got, want in zip(
        torch.autograd.grad(out.square().sum(), trained),
        torch.autograd.grad(expected.square().sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9)
        assert want.abs().max() > 0


def embed(encoder, image):
    return encoder.patch_embed(image).permute(0, 2, 3, 1)


def finish(encoder, x):
    return encoder.neck(x.permute(0, 3, 1, 2))


def test_adapter_parallel(adapted, image):
    encoder, _ = adapted(Adapter(width=3, scale=0.5))
    x = embed(encoder, image)
    for block in encoder.blocks:
        x = x + block.attend(block.norm1(x))
        h, b = block.norm2(x), block.mlp.bottleneck
        hidden = (h @ b.down.weight.T + b.down.bias).clamp(min=0)
        x = x + block.mlp.base(h) + 0.5 * (hidden @ b.up.weight.T + b.up.bias)
    assert_same(encoder, image, finish(encoder, x))


def test_adapter_sequential(adapted, image):
    encoder, _ = adapted(Adapter(width=3, placement="sequential"))

    def behind(h, b):
        return h + F.gelu(h @ b.down.weight.T + b.down.bias) @ b.up.weight.T + b.up.bias

    x = embed(encoder, image)
    for block in encoder.blocks:
        attended = block.attend(block.norm1(x), block.attn.base)
        x = x + behind(attended, block.attn.bottleneck)
        x = x + behind(block.mlp.base(block.norm2(x)), block.mlp.bottleneck)
    assert_same(encoder, image, finish(encoder, x))


def test_ssf_scales_and_shifts_after_each_operation(adapted, image):
    encoder, _ = adapted(Ssf())

    def apply(layer, x):
        return layer.base(x) * layer.scale + layer.shift

    patches = encoder.patch_embed
    x = patches.base(image).permute(0, 2, 3, 1) * patches.scale + patches.shift
    for block in encoder.blocks:
        attn, mlp = block.attn, block.mlp

        def attend(windows, attn=attn):
            B, H, W, C = windows.shape
            q, k, v = apply(attn.qkv, windows).view(B, H * W, 3, C).unbind(2)
            return apply(attn.proj, F.scaled_dot_product_attention(q, k, v).view(B, H, W, C))

        x = x + block.attend(apply(block.norm1, x), attend)
        x = x + apply(mlp.lin2, F.gelu(apply(mlp.lin1, apply(block.norm2, x))))
    assert_same(encoder, image, finish(encoder, x))


def test_ssf_scales_in_float32_under_autocast():
    """A scale near 1 that is rounded to bfloat16 first would go in steps of 0.0078, or not at all."""
    layer, x = ScaledShifted(torch.nn.Linear(8, 8)), torch.randn(5, 8)
    torch.nn.init.constant_(layer.scale, 1.0035)
    torch.nn.init.constant_(layer.shift, 1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        base, found = layer.base(x), layer(x)
    assert found.dtype == base.dtype == torch.bfloat16
    assert torch.equal(found, (base.float() * 1.0035 + 1e-3).bfloat16())
    assert not torch.equal(found, (base * torch.tensor(1.0035).bfloat16() + 1e-3).bfloat16())


def test_ssf_merges_into_a_layer_without_bias():
    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed = torch.nn.Conv2d(3, 4, 2, 2, bias=False)
            self.blocks = torch.nn.ModuleList(
                [torch.nn.ModuleDict({"lin": torch.nn.Linear(4, 4, bias=False)})]
            )

        def forward(self, x):
            return self.blocks[0]["lin"](self.patch_embed(x).permute(0, 2, 3, 1))

    encoder, image = Encoder(), torch.randn(1, 3, 4, 4)
    for parameter in install(encoder, Ssf(targets=("lin",))):
        torch.nn.init.normal_(parameter)
    expected = encoder(image)
    merge(encoder)
    torch.testing.assert_close(encoder(image), expected, rtol=1e-5, atol=1e-6)
    assert encoder.blocks[0]["lin"].bias is not None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"alpha": 5.0}) for name in ("lora", "conv-lora", "conv-lora-multiscale")),
        *((name, {"scales": (1, 2, 3, 4, 5, 6, 7, 9)}) for name in ("conv-lora", "conv-lora-multiscale")),
        *(("conv-lora", {k: v}) for k, v in (("top_k", 2), ("routing", "switch"), ("scope", "image"))),
        ("conv-lora", {"balance_weight": 0.5}),
        ("adapter", {"scale": 0.5}),
        ("sam-adapter", {"rate": 0.5}),
    ],
    ids=str,
)
def test_options_that_change_no_shape_reach_the_layers(adapted, image, name, options):
    results = []
    for given in ({}, options):
        torch.manual_seed(0)
        encoder, _ = adapted(build_method(name, given))
        out, side = encoder(image).square().mean(), auxiliary_loss(encoder)
        results.append(out if side is None else out + side)
    assert abs(results[0] - results[1]) > 1e-6 * abs(results[0])


def test_bitfit_trains_biases_alone(adapted):
    encoder, _ = adapted(BitFit())
    trained = trainable_parameters(encoder)
    assert all(name.endswith("bias") for name in trained)
    assert len(trained) == 2 * 6 + 2  # patches and neck


@pytest.mark.parametrize("shape", [(8, 8), (16, 12), (7, 9), (32, 6)])
@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5])
def test_high_frequencies_against_the_shifted_spectrum(shape, rate):
    image = np.random.default_rng(0).normal(size=(2, 3, *shape))
    h, w = shape
    spectrum = np.fft.fftshift(np.fft.fft2(image), axes=(-2, -1))
    half = int((h * w * rate) ** 0.5 // 2)
    spectrum[..., max(0, h // 2 - half) : h // 2 + half, max(0, w // 2 - half) : w // 2 + half] = 0
    expected = np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(-2, -1))).real)
    got = high_frequencies(torch.from_numpy(image), rate).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)  # rounding of doubles
    assert np.allclose(got, np.abs(image)) == (half == 0)


def test_high_frequencies_of_a_flat_image_are_zero():
    assert high_frequencies(torch.full((1, 3, 8, 8), 5.0), 0.25).abs().max() < 1e-5


def test_sam_adapter(adapted, image):
    encoder, _ = adapted(SamAdapter(reduction=2))
    path = encoder.side_path
    x = patches = embed(encoder, image)
    kernel = path.frequencies.weight
    high = F.unfold(high_frequencies(image, 0.25), 2, stride=2).transpose(1, 2) @ kernel.flatten(1).T
    features = patches @ path.embedding.weight.T + path.embedding.bias
    features = features + high.view(2, 6, 8, -1) + path.frequencies.bias
    for block, tune in zip(encoder.blocks, path.tune, strict=True):
        x = block(x + path.up(F.gelu(tune(features))))
    assert_same(encoder, image, finish(encoder, x))


def test_vpt_deep_drops_the_tokens_of_each_block(adapted, image):
    encoder, _ = adapted(Vpt(tokens=3))
    x = embed(encoder, image)
    for block, tokens in zip(encoder.blocks, encoder.side_path.tokens, strict=True):
        x, _ = block.with_tokens(x, torch.stack([tokens, tokens]))
    assert_same(encoder, image, finish(encoder, x))


def test_vpt_shallow_passes_the_tokens_on(adapted, image):
    encoder, _ = adapted(Vpt(tokens=3, deep=False), windows=(3, 0, 3))
    assert encoder.side_path.tokens.shape == (1, 3, 8)
    x, tokens = embed(encoder, image), encoder.side_path.tokens.repeat(2, 1, 1)
    for block in encoder.blocks:
        x, tokens = block.with_tokens(x, tokens)
    assert_same(encoder, image, finish(encoder, x))


def within(values, bound):
    """Uniform numbers between -bound and bound, many of them."""
    assert values.abs().max() <= bound
    assert values.abs().max() > 0.98 * bound
    assert values.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_new_layers_start_as_their_sources_say():
    """VPT's tokens by Xavier over patch and width; a bottleneck as nn.Linear does, its end at zero."""
    torch.manual_seed(0)
    patches = torch.nn.Conv2d(3, 32, kernel_size=8)
    within(PromptTokens(patches, 2, 100).tokens.detach(), (6 / (3 * 8 * 8 + 32)) ** 0.5)
    bottleneck = Bottleneck(torch.ones(32), 200, relu=True)
    within(bottleneck.down.weight.detach(), 1 / 32**0.5)
    assert not any(p.any() for p in (bottleneck.down.bias, bottleneck.up.weight, bottleneck.up.bias))


def test_lst(adapted, image):
    encoder, _ = adapted(Lst(width=16))
    path, x = encoder.side_path, embed(encoder, image)
    side = path.down[0](x)
    for i, block in enumerate(encoder.blocks):
        x = block(x).detach()
        mix = 1 / (1 + torch.exp(-path.gates[i] / 0.1))
        side = path.sides[i](mix * path.down[i + 1](x) + (1 - mix) * side)
    assert_same(encoder, image, finish(encoder, x + path.up(path.norm(side))))


def saved_bytes(encoder, image):
    """Bytes that the graph of a forward pass keeps, parameters left out."""
    kept = {}
    parameters = {p.untyped_storage().data_ptr() for p in encoder.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = encoder(image)
    return sum(kept.values()), out


def test_lst_keeps_the_outputs_of_the_frozen_blocks_only(make_encoder):
    """What LoRA keeps of each block (its attention, its MLP's hidden layer) is not there."""
    image = torch.randn(1, 3, 32, 32)
    kept = {}
    for method in (Lst(), Lora()):
        encoder = make_encoder(256, (3, 0, 3, 0))
        install(encoder, method)
        kept[method.name], out = saved_bytes(encoder, image)
        assert out.requires_grad
    outputs = 5 * 16 * 16 * 256 * 4  # bytes of x_0 .. x_4
    assert outputs < kept["lst"] < kept["lora"] / 3


def test_lst_sends_no_gradient_into_the_blocks(make_encoder, image):
    encoder = make_encoder().double()
    install(encoder, Lst())
    torch.nn.init.normal_(encoder.side_path.up.weight)
    encoder.blocks.requires_grad_(True)
    encoder(image).sum().backward()
    assert all(p.grad is None for p in encoder.blocks.parameters())
    assert encoder.side_path.sides[0].mlp.lin1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adapter(width=0), "adapter: width must be an integer of at least 1, got 0"),
        (lambda: Adapter(placement="before"), "placement must be 'parallel' or 'sequential', got 'before'"),
        (lambda: Adapter(scale=0), "scale must be a number above 0, got 0"),
        (
            lambda: Adapter(placement="sequential", scale=0.5),
            "scale must be left out with placement=sequential, which has no such factor, got 0.5",
        ),
        (lambda: SamAdapter(reduction=0), "reduction must be an integer of at least 1"),
        (lambda: SamAdapter(rate=1.0), "rate must be a number from 0 up to, not including, 1, got 1.0"),
        (lambda: Vpt(tokens=0), "tokens must be an integer of at least 1"),
        (lambda: Vpt(deep="yes"), "deep must be true or false, got 'yes'"),
        (lambda: Lst(width=20), "width must be a multiple of 16, got 20"),
        (lambda: Ssf(targets=()), "targets must be a list"),
    ],
)
def test_options(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)


def test_encoder_without_a_place_is_refused(make_encoder):
    encoder = make_encoder()
    install(encoder, Vpt())
    with pytest.raises(TargetError, match="has a PromptTokens already"):
        install(encoder, Lst())
    del encoder.side_path
    with pytest.raises(TargetError, match="FakeEncoder has no 'side_path'"):
        set_side_path(encoder, torch.nn.Identity())
    encoder.patch_embed = torch.nn.Identity()
    with pytest.raises(TargetError, match="no convolution in 'patch_embed'"):
        install(encoder, SamAdapter())
