"""What OpenVINO computes from a converted model, against PyTorch on full tensors."""

import warnings
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from convlora import adapters
from convlora.adapters.lora import LoRALinear, updated_linear
from convlora.backbone.attention import Attention
from convlora.backbone.image_encoder import ImageEncoder
from convlora.backbone.initialise import random_sam
from convlora.inference.openvino import conversion, forms, runtime
from convlora.inference.openvino.conversion import Logits, convert
from convlora.inference.openvino.runtime import compile_model
from convlora.model import Segmenter, SegmenterConfig
from convlora.presets import LEARNED_ROUTER
from convlora.unet import Unet
from small import SMALL

SIZE = (64, 48)  # 8 x 6 cells: windows of 4 are padded in one direction only
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}  # float32 sums in another order, values about 1


def randomise(module, seed=0):
    """Give every parameter that is zero, so that no update is idle, numbers of an own seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module.eval().requires_grad_(False)


def image(size=SIZE, seed=0):
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))


def adapted(method, **options):
    torch.manual_seed(0)
    encoder = ImageEncoder(SMALL.encoder)
    few = {"scales": [1, 2, 7]} if method.startswith("conv-lora") else {}  # the time goes into converting
    adapters.install(encoder, adapters.build_method(method, {**few, **options}))
    return randomise(encoder)


def model(head="binary", classes=2, method="decoder-only"):
    torch.manual_seed(0)
    names = tuple(f"c{i}" for i in range(classes))
    config = SegmenterConfig("none", names, method, head=head, num_masks=max(4, classes), image_size=64)
    return randomise(Segmenter(random_sam(SMALL), config))


def computed(module, folder, size=SIZE, dtype=None, seed=0):
    convert(module, size, folder / "model.xml")
    result = compile_model(str(folder / "model.xml"), dtype)([image(size, seed).numpy()])
    return [torch.from_numpy(result[i].copy()) for i in range(len(result))]


@pytest.mark.parametrize("method", sorted(adapters.methods()))
def test_every_method(method, tmp_path):
    encoder = adapted(method)
    [out] = computed(encoder, tmp_path)
    expected = encoder(image())
    torch.testing.assert_close(out, expected, **TOLERANCE)
    plain = ImageEncoder(SMALL.encoder).eval()
    plain.load_state_dict(encoder.state_dict(), strict=False)
    if adapters.methods()[method].trains_encoder and method not in {"full", "bitfit"}:
        assert (plain(image()) - expected).abs().max() > 0.01, "the method does nothing here"


def test_the_router_that_learns(tmp_path):
    encoder = adapted("conv-lora", **LEARNED_ROUTER)
    [out] = computed(encoder, tmp_path)
    expected = encoder(image())
    torch.testing.assert_close(out, expected, **TOLERANCE)
    for layer in (block.attn.qkv for block in encoder.blocks):
        layer.gain = 0.0
    assert (encoder(image()) - expected).abs().max() > 0.01


@pytest.mark.parametrize(("head", "classes"), [("binary", 2), ("per-class", 3), ("mask-classification", 3)])
def test_every_head(head, classes, tmp_path):
    segmenter = model(head, classes)
    out = computed(Logits(segmenter), tmp_path)
    expected = [part for part in segmenter(image()) if part is not None]
    assert len(out) == len(expected) == (2 if head == "mask-classification" else 1)
    for a, b in zip(out, expected, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_unet(tmp_path):
    pytest.importorskip("monai")
    unet = Unet.from_scratch(SegmenterConfig("unet", ("a", "b"), "full", image_size=64)).eval()
    unet.requires_grad_(False)
    [out] = computed(Logits(unet), tmp_path, (64, 64))
    torch.testing.assert_close(out, unet(image((64, 64))).mask_logits, **TOLERANCE)


def test_gates_stay_in_float32_where_the_rest_is_bfloat16(tmp_path):
    if "BF16" not in runtime._capabilities():
        pytest.skip("OpenVINO finds no bf16 arithmetic in this processor")
    convert(adapted("conv-lora"), SIZE, tmp_path / "model.xml")
    compiled = compile_model(str(tmp_path / "model.xml"), torch.bfloat16)
    precisions = {
        op.get_friendly_name(): op.get_rt_info()["runtimePrecision"].astype(str)
        for op in compiled.get_runtime_model().get_ops()
    }
    for block in range(2):
        scope = f"__module.blocks.{block}.attn.qkv"
        assert precisions[f"{scope}/aten::mean/ReduceMean"] == "f32"
        assert precisions[f"{scope}.gate/aten::matmul/MatMul"] == "f32"
    assert precisions["__module.blocks.0.mlp.lin1/aten::linear/Add"] == "bf16"


def test_bfloat16_is_near_float32(tmp_path):
    if "BF16" not in runtime._capabilities():
        pytest.skip("OpenVINO finds no bf16 arithmetic in this processor")
    encoder = adapted("lora")
    [out] = computed(encoder, tmp_path, dtype=torch.bfloat16)
    expected = encoder(image())
    error = (out - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 1e-5 < error < 0.03  # bf16 has 8 bits: 0.4 % a rounding


@pytest.mark.parametrize("tokens", [0, 3])
@pytest.mark.parametrize("limit", [2**26, 2 * 2 * 51 * 7])
def test_attention_with_bias_is_the_layers_own(tokens, limit, monkeypatch):
    monkeypatch.setattr(forms, "_LOGITS", limit)  # the smaller one: some queries at a time
    layer = randomise(Attention(16, 2, grid=8))
    q, k, v = torch.randn(3, 2, 2, 48 + tokens, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    out = forms.attend_with_bias(layer, q, k, v, 8, 6)
    torch.testing.assert_close(out, layer._attend_with_positions(q, k, v, 8, 6), rtol=1e-5, atol=1e-5)
    assert (out - F.scaled_dot_product_attention(q, k, v)).abs().max() > 0.01, "positions do nothing here"


def test_forms_are_taken_away_again():
    encoder = adapted("ssf")
    expected = encoder(image())
    before = {name: set(module.__dict__) for name, module in encoder.named_modules()}
    with forms.fast_forms(encoder):
        assert "_attend_with_positions" in encoder.blocks[0].attn.__dict__
        assert isinstance(encoder.blocks[0].norm1.__dict__["forward"], partial)
        torch.testing.assert_close(encoder(image()), expected, **TOLERANCE)
    assert {name: set(module.__dict__) for name, module in encoder.named_modules()} == before


def test_traced_update_is_the_same_product():
    layer = randomise(LoRALinear(torch.nn.Linear(40, 24), rank=3, alpha=2.0))
    x, z = torch.randn(2, 5, 40), torch.randn(2, 5, 3)

    def update(x, z):
        return updated_linear(layer.base, x, z, layer.lora_B, layer.scaling)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch has deprecated tracing
        traced = torch.jit.trace(update, (x, z), check_trace=False)
    assert "aten::cat" in str(traced.graph)
    assert "aten::addmm" not in str(traced.graph)
    torch.testing.assert_close(traced(x, z), update(x, z), rtol=1e-5, atol=1e-5)


def test_only_gates_and_their_means_are_marked():
    scopes = set(conversion._gate_scopes(adapted("conv-lora")))
    assert scopes == {
        f"__module.blocks.{i}.attn.qkv{end}" for i in range(2) for end in (".gate/", "/aten::mean")
    }
    assert not list(conversion._gate_scopes(adapted("lora")))
