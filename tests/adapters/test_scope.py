"""Scope `image` in SAM's own windowed block against explicit loops over windows, forward and backward."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convlora.adapters.conv_lora import ConvLoRALinear
from convlora.backbone.image_encoder import Block
from convlora.backbone.presets import EncoderSpec

SCALES, RANK, WINDOW = (1, 2, 5), 2, 3
SPEC = EncoderSpec(8, 2, 2, (1,), image_size=64, patch_size=8, window_size=WINDOW, out_channels=16)
B, H, W = 2, 5, 7  # windows of 3 do not divide it: 2 x 3 of them, padded at both ends


class Slow(nn.Module):
    """The adapted qkv with the map put together, and the update handed out, one window at a time.

    Differs from `layer` in no parameter: it uses that layer's own.
    """

    def __init__(self, layer, seed):
        super().__init__()
        self.layer, self.seed = layer, seed

    def forward(self, windows):
        layer = self.layer
        maps = []
        for image in range(B):
            z = windows.new_zeros(2 * WINDOW, 3 * WINDOW, RANK)
            for i in range(6):
                top, left = WINDOW * (i // 3), WINDOW * (i % 3)
                low = windows[6 * image + i] @ layer.lora_A.T
                z = z + F.pad(low, (0, 0, left, 6 - left, top, 3 - top))
            maps.append(z[:H, :W])
        updates = self.updates(torch.stack(maps))
        out = []
        for image in range(B):
            padded = F.pad(updates[image], (0, 0, 0, 3 * WINDOW - W, 0, 2 * WINDOW - H))
            for i in range(6):
                top, left = WINDOW * (i // 3), WINDOW * (i % 3)
                x = windows[6 * image + i]
                low = x @ layer.lora_A.T + padded[top : top + WINDOW, left : left + WINDOW]
                out.append(layer.base(x) + layer.scaling * low @ layer.lora_B.T)
        return torch.stack(out)

    def updates(self, z):
        weights = self.weights(z)
        return torch.stack(
            [
                sum(weights[b][..., e, None] * self.expert(one, e) for e in range(len(SCALES)))
                for b, one in enumerate(z)
            ]
        )

    def expert(self, z, e):
        scale, coarse, experts = SCALES[e], z.permute(2, 0, 1)[None], self.layer.experts
        fine = F.interpolate(coarse, scale_factor=scale, mode="bicubic") if scale > 1 else coarse
        fine = F.gelu(F.conv2d(fine, experts.weight[e], experts.bias[e], padding=1))
        return (F.interpolate(fine, size=(H, W), mode="bicubic") if scale > 1 else fine)[0].permute(1, 2, 0)

    def weights(self, z):
        """(B, H, W, M), of the gate's definition."""
        gate, routing = self.layer.gate, self.layer.routing
        if routing == "soft-pixel":
            return (z @ gate.w_gate).softmax(-1)
        mean = z.mean((1, 2))
        logits = mean @ gate.w_gate
        if routing == "soft":
            return logits.softmax(-1)[:, None, None].expand(B, H, W, -1)
        if self.training:
            torch.manual_seed(self.seed)
            logits = logits + torch.randn_like(logits) * (F.softplus(mean @ gate.w_noise) + 0.01)
        top = logits.argsort(dim=1, descending=True)[:, : gate.top_k]
        chosen = torch.zeros_like(logits).scatter(1, top, 1.0)
        shares = logits.exp() * (1 if routing == "switch" else chosen)  # of all experts, or of the chosen
        return (chosen * logits.exp() / shares.sum(1, keepdim=True))[:, None, None].expand(B, H, W, -1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("routing", "top_k"),
    [("balance", 1), ("balance", 2), ("switch", 1), ("switch", 2), ("soft", 1), ("soft-pixel", 1)],
)
def test_image_scope_in_a_windowed_block(routing, top_k, training):
    torch.manual_seed(0)
    block = Block(SPEC, WINDOW).double()
    layer = ConvLoRALinear(block.attn.qkv, RANK, 7.0, SCALES, top_k, 0.3, routing, block)
    for parameter in [*block.parameters(), *layer.parameters()]:
        nn.init.normal_(parameter, std=0.5)
    block.attn.qkv = layer
    block.train(training)
    x = torch.randn(B, H, W, 8, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(4)
    out = block(x)
    assert out.shape == x.shape
    block.attn.qkv = Slow(layer, seed=4).train(training)
    expected = block(x)
    # float64 rounding
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    silent = ["gate.w_noise"] if not training else []
    silent += ["gate.w_gate", "gate.w_noise"] if routing == "balance" and top_k == 1 else []
    names = [name for name, _ in layer.named_parameters() if name not in silent]
    inputs = [x, *(layer.get_parameter(name) for name in names)]
    for name, got, want in zip(
        ["x", *names],
        torch.autograd.grad(out.sin().sum(), inputs),
        torch.autograd.grad(expected.sin().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
        assert want.abs().max() > 1e-6, name


def test_a_global_block_has_no_windows_to_join():
    torch.manual_seed(0)
    block = Block(SPEC, 0).double()
    outputs = []
    x = torch.randn(B, H, W, 8, dtype=torch.float64)
    base = block.attn.qkv
    layer = ConvLoRALinear(base, RANK, 7.0, SCALES)
    nn.init.normal_(layer.lora_B)
    for windows in (None, block):
        layer.windows = (windows,)
        block.attn.qkv = layer.eval()
        outputs.append(block(x))
    assert torch.equal(*outputs)
    block.attn.qkv = base
    assert not torch.allclose(block(x), outputs[0], atol=1e-2)
