"""The Conv-LoRA layer as a whole and its options."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from convlora.adapters import ConvLora, auxiliary_loss, install
from convlora.adapters.conv_lora import ConvLoRALinear
from convlora.errors import ConfigError, TargetError


def make(top_k=1, dtype=torch.float64, scales=(1, 2, 5)):
    layer = ConvLoRALinear(nn.Linear(6, 10, dtype=dtype), 2, 7.0, scales, top_k, 0.3)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def slow_layer(layer, x, gates, indices):
    z = torch.einsum("bhwc,rc->bhwr", x, layer.lora_A)
    mixed = z.clone()
    for b in range(len(x)):
        for gate, e in zip(gates[b], indices[b].tolist(), strict=True):
            scale, coarse = layer.experts.scales[e], z[b].permute(2, 0, 1)[None]
            fine = F.interpolate(coarse, scale_factor=scale, mode="bicubic") if scale > 1 else coarse
            fine = F.gelu(F.conv2d(fine, layer.experts.weight[e], layer.experts.bias[e], padding=1))
            out = F.interpolate(fine, size=coarse.shape[2:], mode="bicubic") if scale > 1 else fine
            mixed[b] += gate * out[0].permute(1, 2, 0)
    return layer.base(x) + 3.5 * torch.einsum("bhwr,or->bhwo", mixed, layer.lora_B)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_layer_is_the_formula(top_k, training):
    layer = make(top_k).train(training)
    x = torch.randn(5, 4, 6, 6, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(2)
    out = layer(x)
    torch.manual_seed(2)
    routing = layer.gate((x @ layer.lora_A.T).flatten(1, 2).sum(1) / 24)
    expected = slow_layer(layer, x, routing.gates, routing.indices)
    # float64 rounding
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    trained = [p for n, p in layer.named_parameters() if not n.startswith("gate")]
    for got, want in zip(
        torch.autograd.grad(out.sin().sum(), [x, *trained]),
        torch.autograd.grad(expected.sin().sum(), [x, *trained]),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        assert want.abs().max() > 0
    assert (layer.aux_loss is None) == (not training)
    if training:
        assert layer.aux_loss.item() == pytest.approx(0.3 * routing.balance.item(), rel=1e-10)


def test_task_gradient_reaches_the_gate_from_top_2_on():
    for top_k in (1, 2):
        layer = make(top_k)
        layer(torch.randn(5, 4, 6, 6, dtype=torch.float64)).square().sum().backward()
        grads = [layer.gate.w_gate.grad, layer.gate.w_noise.grad]
        assert all((g is not None and bool(g.abs().sum() > 0)) == (top_k > 1) for g in grads)


def test_side_loss_is_summed_over_layers_and_cleared_in_evaluation(make_encoder):
    encoder = make_encoder().train()
    install(encoder, ConvLora())
    image = torch.randn(1, 3, 10, 14)
    encoder(image)
    layers = [block.attn.qkv for block in encoder.blocks]
    total = auxiliary_loss(encoder)
    assert total.shape == ()
    assert total.item() == pytest.approx(sum(layer.aux_loss.item() for layer in layers), rel=1e-6)
    # one sample in the global block: the importance is one of eight experts, CV^2 = 8, weight 0.01
    assert layers[1].aux_loss > 0.08
    encoder.eval()(image)
    assert auxiliary_loss(encoder) is None


def test_each_window_is_routed_on_its_own(make_encoder):
    encoder = make_encoder().train()
    install(encoder, ConvLora())
    seen = {}
    for i, block in enumerate(encoder.blocks):
        block.attn.qkv.gate.register_forward_hook(lambda m, a, out, i=i: seen.update({i: out.indices}))
    encoder(torch.randn(2, 3, 10, 14))
    assert seen[0].shape == (2 * 6, 1)  # 5 x 7 patches in windows of 3: 2 x 3 windows an image
    assert seen[1].shape == (2, 1)
    assert len(seen[0].unique()) > 1


def test_flattened_map_is_refused():
    with pytest.raises(TargetError, match=r"\(2, 24, 6\)\. Choose targets that do"):
        make()(torch.randn(2, 24, 6, dtype=torch.float64))


def test_mixed_precision_layers():
    """A half-precision base gets a float32 adapter, and the output stays in half precision."""
    base = nn.Linear(6, 10, dtype=torch.bfloat16)
    layer = ConvLoRALinear(base, 2, 7.0, (1, 2))
    assert {p.dtype for n, p in layer.named_parameters() if not n.startswith("base")} == {torch.float32}
    nn.init.normal_(layer.lora_B)
    x = torch.randn(1, 4, 4, 6, dtype=torch.bfloat16)
    out = layer(x)
    assert out.dtype == torch.bfloat16
    assert not torch.allclose(out, base(x))
    out.float().sum().backward()
    assert layer.experts.weight.grad.isfinite().all()


def test_whole_layer_runs_without_values():
    with FakeTensorMode():
        layer = ConvLoRALinear(nn.Linear(6, 10), 2, 7.0, (1, 2, 5), top_k=2)
        out = layer(torch.randn(3, 4, 5, 6))
        (out.sum() + layer.aux_loss).backward()
    assert layer.gate.w_noise.grad.shape == (2, 3)


def test_copy_does_not_share_the_side_loss():
    layer = make()
    layer(torch.randn(1, 3, 3, 6, dtype=torch.float64))
    assert copy.deepcopy(layer).aux_loss is None
    assert layer.aux_loss is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "conv-lora: rank must be an integer of at least 1, got 0."),
        ({"rank": True}, "rank must be an integer"),
        ({"rank": 2.0}, "rank must be an integer"),
        ({"alpha": 0.0}, "alpha must be a number above 0, got 0.0"),
        ({"alpha": float("nan")}, "alpha must be a number above 0, got nan"),
        ({"scales": ()}, "scales must be a list of integers of at least 1"),
        ({"scales": (1, 0)}, "scales must be a list of integers of at least 1"),
        ({"scales": 3}, "scales must be a list of integers of at least 1"),
        ({"scales": (1, 2), "top_k": 3}, "top_k must be an integer from 1 to the number of scales, 2, got 3"),
        ({"top_k": 0}, "top_k must be an integer from 1"),
        ({"targets": ()}, "targets must be a list of different layer names"),
        ({"targets": "attn.qkv"}, "targets must be a list of different layer names"),
        ({"targets": ("a", "a")}, "targets must be a list of different layer names"),
        ({"targets": ("qkv", "attn.qkv")}, "targets must be a list of different layer names"),
        ({"targets": ("mlp", "mlp.lin2")}, "or of qkv, proj and mlp, got ['mlp', 'mlp.lin2']"),
        ({"targets": (1,)}, "targets must be a list of different layer names"),
        ({"routing": "hard"}, "routing must be one of balance, switch, soft, soft-pixel, got 'hard'"),
        ({"routing": "soft", "top_k": 2}, "top_k must be left out with routing=soft, where all scales run"),
        (
            {"routing": "soft-pixel", "balance_weight": 0.1},
            "balance_weight must be left out with routing=soft-pixel, which has no balance loss, got 0.1",
        ),
        ({"scope": "map"}, "scope must be one of window, image, got 'map'"),
        ({"temperature": 0}, "temperature must be a number above 0, got 0"),
        ({"gain": -1.0}, "gain must be a number above 0, got -1.0"),
        ({"start": "equal"}, "start must be one of random, zero, got 'equal'"),
        ({"balance_weight": -1.0}, "balance_weight must be a number of at least 0"),
        ({"balance_weight": "0.01"}, "balance_weight must be a number of at least 0, got '0.01'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError) as caught:
        ConvLora(**options)
    assert message in str(caught.value)
