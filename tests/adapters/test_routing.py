"""Routings and scope of Conv-LoRA against the formulas written out, position by position."""

import copy
import pickle

import pytest
import torch
from fake_encoder import FakeEncoder
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from convlora.adapters import ConvLora, auxiliary_loss, install, trainable_parameters
from convlora.adapters.conv_lora import ConvLoRALinear
from convlora.adapters.multi_scale import MultiScaleLoRALinear
from convlora.backbone.image_encoder import ImageEncoder
from convlora.backbone.presets import EncoderSpec

SCALES = (1, 2, 5)


def make(routing, top_k=1, training=True, temperature=1.0, gain=1.0):
    base = nn.Linear(6, 10, dtype=torch.float64)
    layer = ConvLoRALinear(base, 2, 7.0, SCALES, top_k, 0.3, routing, None, temperature, gain)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.train(training)


def slow_expert(layer, z, e):
    """Expert e on one map (H, W, r), by interpolation."""
    scale, coarse = SCALES[e], z.permute(2, 0, 1)[None]
    fine = F.interpolate(coarse, scale_factor=scale, mode="bicubic") if scale > 1 else coarse
    fine = F.gelu(F.conv2d(fine, layer.experts.weight[e], layer.experts.bias[e], padding=1))
    out = F.interpolate(fine, size=coarse.shape[2:], mode="bicubic") if scale > 1 else fine
    return out[0].permute(1, 2, 0)


def slow_layer(layer, x, weights):
    """`weights`: function of a map (H, W, r) and its number to the weight of each expert there, (H, W, M)."""
    z = torch.einsum("bhwc,rc->bhwr", x, layer.lora_A)
    total = []
    for b, one in enumerate(z):
        w = weights(one, b)
        mixed = sum(w[..., e, None] * slow_expert(layer, one, e) for e in range(len(SCALES)))
        total.append(one + getattr(layer, "gain", 1) * mixed)
    return layer.base(x) + 3.5 * torch.einsum("bhwr,or->bhwo", torch.stack(total), layer.lora_B)


def switch_weights(layer, x, seed):
    """Shares of the full softmax for the chosen experts, zero for the others; noise as the gate draws it."""
    torch.manual_seed(seed)
    mean = (x @ layer.lora_A.T).flatten(1, 2).sum(1) / (x.shape[1] * x.shape[2])
    logits = mean @ layer.gate.w_gate / layer.gate.temperature
    if layer.training:
        logits = logits + torch.randn_like(logits) * (F.softplus(mean @ layer.gate.w_noise) + 0.01)
    shares = logits.exp() / logits.exp().sum(1, keepdim=True)
    chosen = torch.zeros_like(shares)
    chosen.scatter_(1, logits.argsort(dim=1, descending=True)[:, : layer.gate.top_k], 1.0)
    return lambda z, b: (shares * chosen)[b].expand(*z.shape[:2], -1)


def soft_weights(layer, x, seed):
    logits = layer.gate.w_gate / layer.gate.temperature
    return lambda z, b: (z.mean((0, 1)) @ logits).softmax(0).expand(*z.shape[:2], -1)


def pixel_weights(layer, x, seed):
    return lambda z, b: (z @ layer.gate.w_gate / layer.gate.temperature).softmax(-1)


WEIGHTS = {"switch": switch_weights, "soft": soft_weights, "soft-pixel": pixel_weights}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("temperature", "gain"), [(1.0, 1.0), (0.4, 3.0)])
@pytest.mark.parametrize(
    ("routing", "top_k"), [("switch", 1), ("switch", 2), ("switch", 3), ("soft", 1), ("soft-pixel", 1)]
)
def test_layer_is_the_formula(routing, top_k, training, temperature, gain):
    layer = make(routing, top_k, training, temperature, gain)
    x = torch.randn(4, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(2)
    out = layer(x)
    expected = slow_layer(layer, x, WEIGHTS[routing](layer, x, 2))
    # float64 rounding
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    named = {"x": x} | {n: p for n, p in layer.named_parameters() if training or not n.endswith("w_noise")}
    for name, got, want in zip(
        named,
        torch.autograd.grad(out.sin().sum(), list(named.values())),
        torch.autograd.grad(expected.sin().sum(), list(named.values())),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
        assert want.abs().max() > 1e-4, name
    assert (layer.aux_loss is None) == (not training or routing != "switch")


def test_all_scales_summed_is_the_formula():
    layer = MultiScaleLoRALinear(nn.Linear(6, 10, dtype=torch.float64), 2, 7.0, SCALES)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(4, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    out, expected = layer(x), slow_layer(layer, x, lambda z, b: z.new_ones(*z.shape[:2], len(SCALES)))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)  # float64 rounding
    inputs = {"x": x} | dict(layer.named_parameters())
    for name, got, want in zip(
        inputs,
        torch.autograd.grad(out.sin().sum(), list(inputs.values())),
        torch.autograd.grad(expected.sin().sum(), list(inputs.values())),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
        assert want.abs().max() > 1e-4, name


def test_the_task_trains_the_router_but_for_balance():
    for routing in ("balance", "switch", "soft", "soft-pixel"):
        layer = make(routing)
        layer(torch.randn(5, 4, 6, 6, dtype=torch.float64)).square().sum().backward()
        grads = [p.grad for p in layer.gate.parameters()]
        assert len(grads) == (1 if routing.startswith("soft") else 2)
        assert all(g is not None and bool(g.abs().sum() > 0) for g in grads) == (routing != "balance")


def test_kernels_that_start_at_zero_leave_lora_and_learn():
    torch.manual_seed(0)
    encoder = FakeEncoder().double()
    install(encoder, ConvLora(rank=2, scales=SCALES, routing="soft", start="zero", gain=8.0))
    layer = encoder.blocks[0].attn.qkv
    nn.init.normal_(layer.lora_B)
    x = torch.randn(2, 4, 4, 8, dtype=torch.float64)
    out = layer(x)
    expected = layer.base(x) + layer.scaling * x @ layer.lora_A.T @ layer.lora_B.T
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    out.square().sum().backward()
    assert layer.experts.weight.grad.abs().amax((1, 2, 3, 4)).min() > 0.1
    torch.manual_seed(0)
    usual = FakeEncoder().double()
    install(usual, ConvLora(rank=2, scales=SCALES))
    assert usual.blocks[0].attn.qkv.experts.weight.std() > 0.1


def test_soft_with_a_sure_gate_is_the_choice_of_balance():
    hard, soft = make("balance", training=False), make("soft", training=False)
    state = {name: p for name, p in hard.state_dict().items() if name != "gate.w_noise"}
    soft.load_state_dict(state)
    with torch.no_grad():
        for layer in (hard, soft):
            layer.gate.w_gate.mul_(1e4)
    x = torch.randn(6, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(soft(x), hard(x), rtol=1e-9, atol=1e-9)


# --- scope ---


def installed(scope, windows=(3, 0), **options):
    torch.manual_seed(0)
    encoder = FakeEncoder(windows=windows).double()
    install(encoder, ConvLora(rank=2, scales=SCALES, scope=scope, **options))
    for parameter in trainable_parameters(encoder).values():
        nn.init.normal_(parameter, std=0.3)
    return encoder


@pytest.mark.parametrize("routing", ["balance", "switch", "soft", "soft-pixel"])
def test_image_scope_is_the_formula_on_the_joined_map(routing):
    """5 x 7 patches in windows of 3: the update of the whole map is cut up again, padded with zero."""
    encoder = installed("image", routing=routing).eval()
    layer = encoder.blocks[0].attn.qkv
    seen = {}
    layer.register_forward_hook(lambda m, args, out: seen.update({"x": args[0], "out": out}))
    encoder.blocks[0].register_forward_pre_hook(lambda m, args: seen.update({"map": args[0]}))
    encoder(torch.randn(2, 3, 10, 14, dtype=torch.float64))
    whole = encoder.blocks[0].norm1(seen["map"])
    assert seen["x"].shape == (2 * 6, 3, 3, 8)
    assert whole.shape == (2, 5, 7, 8)
    if routing == "balance":
        chosen = (whole @ layer.lora_A.T).mean((1, 2)) @ layer.gate.w_gate
        weights = F.one_hot(chosen.argmax(1), len(SCALES)).double()

        def of(z, b):
            return weights[b].expand(*z.shape[:2], -1)
    else:
        of = WEIGHTS[routing](layer, whole, 0)
    z = whole @ layer.lora_A.T
    update = torch.stack(
        [
            sum(of(one, b)[..., e, None] * slow_expert(layer, one, e) for e in range(3))
            for b, one in enumerate(z)
        ]
    )
    padded = F.pad(update, (0, 0, 0, 2, 0, 1)).view(2, 2, 3, 3, 3, 2).transpose(2, 3).reshape(12, 3, 3, 2)
    windows = seen["x"] @ layer.lora_A.T + padded
    expected = layer.base(seen["x"]) + layer.scaling * windows @ layer.lora_B.T
    torch.testing.assert_close(seen["out"], expected, rtol=1e-10, atol=1e-10)
    assert padded.abs().max() > 0.01


def test_scope_matters_in_windows_of_the_attention_only():
    image = torch.randn(2, 3, 10, 14, dtype=torch.float64)
    for windows, targets, same in (
        ((3, 0), ("attn.qkv",), False),
        ((0, 0), ("attn.qkv",), True),
        ((3, 0), ("mlp.lin1",), True),
    ):
        outputs = [installed(s, windows, targets=targets).eval()(image) for s in ("window", "image")]
        assert torch.allclose(*outputs, rtol=1e-12) == same


def test_no_window_borders():
    """What one pixel changes within reach of a 3x3 convolution crosses the border of a window."""
    reached = {}
    for scope in ("window", "image"):
        torch.manual_seed(0)
        encoder = FakeEncoder(windows=(3, 0)).double()
        install(encoder, ConvLora(rank=2, scales=(1,), scope=scope))
        for parameter in trainable_parameters(encoder).values():
            nn.init.normal_(parameter, std=0.3)
        block = encoder.eval().blocks[0]
        x = torch.randn(1, 6, 6, 8, dtype=torch.float64)
        other = x.clone()
        other[0, 2, 2] += 1.0  # the last pixel of the first window
        maps = []
        for one in (x, other):
            block.size = (6, 6)
            maps.append(block.joined(block.attn.qkv(block.cut(one))))
        reached[scope] = (maps[0] - maps[1])[0].abs().amax(-1) > 1e-12
    assert not reached["window"][3:, 3:].any()
    assert reached["image"][3, 3]
    assert not reached["image"][4:, 4:].any()


def test_one_decision_for_an_image(make_encoder):
    encoder = make_encoder().train()
    install(encoder, ConvLora(scope="image"))
    seen = []
    for block in encoder.blocks:
        block.attn.qkv.gate.register_forward_hook(lambda m, a, out: seen.append(out.indices.shape))
    encoder(torch.randn(2, 3, 10, 14))
    assert seen == [(2, 1), (2, 1)]
    assert auxiliary_loss(encoder) > 0


SPEC = EncoderSpec(32, 2, 2, (1,), image_size=64, patch_size=8, window_size=3, out_channels=16)


@pytest.mark.parametrize("scope", ["window", "image"])
def test_on_sams_encoder(scope):
    """Copies, pickles, other sizes, and no value read from the device."""
    torch.manual_seed(0)
    encoder = ImageEncoder(SPEC)
    install(encoder.eval(), ConvLora(scales=SCALES, scope=scope))
    encoder.eval()  # the new layers too
    for parameter in trainable_parameters(encoder).values():
        nn.init.normal_(parameter, std=0.3)
    small, large = torch.randn(2, 3, 40, 56), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        first = encoder(small)
        encoder(large)
        assert torch.equal(encoder(small), first)
        for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):  # our own
            encoder(large)  # the copy's windows are joined by the copy's blocks
            assert torch.equal(other(small), first)
    program = torch.export.export(encoder, (small,), strict=False)
    # either is up to 7e-5 from double precision: adapters as large as these amplify rounding; values reach 3
    torch.testing.assert_close(program.module()(small), first, rtol=1e-4, atol=2e-4)
    with FakeTensorMode():
        fake = ImageEncoder(SPEC).train()
        install(fake, ConvLora(scales=SCALES, scope=scope, routing="switch"))
        (fake(torch.randn(2, 3, 40, 56)).sum() + auxiliary_loss(fake)).backward()
    assert fake.blocks[0].attn.qkv.gate.w_gate.grad.shape == (3, 3)
