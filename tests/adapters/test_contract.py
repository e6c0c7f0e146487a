"""What every method must do: a table of methods, each run through the same checks."""

import copy
import pickle
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from convlora.adapters import (
    Mergeable,
    Unmergeable,
    adapter_state_dict,
    auxiliary_loss,
    build_method,
    count_parameters,
    install,
    load_adapter_state_dict,
    merge,
    methods,
    trainable_parameters,
)
from convlora.errors import ConfigError, TargetError
from convlora.presets import LEARNED_ROUTER

DEEP = ["attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2"]


@dataclass(frozen=True)
class Case:
    name: str
    options: dict[str, object] = field(default_factory=dict)
    adds: bool = True  # new parameters beside the frozen ones, which must start as the identity
    merges: bool = True
    identity: bool = True  # starts as the frozen encoder

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{k}={v}" for k, v in self.options.items())])


CASES = [
    Case("conv-lora", merges=False),
    Case(
        "conv-lora",
        {"top_k": 2, "rank": 2, "scales": [2, 3, 3], "targets": ["attn.qkv", "mlp.lin2"]},
        merges=False,
    ),
    Case("conv-lora", {"scales": [4, 2]}, merges=False),
    Case("conv-lora", {"routing": "switch", "top_k": 2}, merges=False),
    *(
        Case("conv-lora", {"routing": r, "scales": [1, 4, 3]}, merges=False)
        for r in ("switch", "soft", "soft-pixel")
    ),
    Case("conv-lora", {"scope": "image"}, merges=False),
    Case("conv-lora", LEARNED_ROUTER, merges=False),
    Case(
        "conv-lora",
        {"scope": "image", "routing": "soft-pixel", "scales": [2, 3], "targets": ["attn.qkv", "mlp.lin1"]},
        merges=False,
    ),
    Case("conv-lora-multiscale", merges=False),
    Case("lora"),
    Case("lora", {"rank": 2, "alpha": 1, "targets": DEEP}),
    Case("conv-lora", {"targets": ["qkv", "proj", "mlp"]}, merges=False),
    Case("bitfit", adds=False),
    Case("adapter", merges=False),
    Case("adapter", {"placement": "sequential", "width": 3}, merges=False),
    Case("sam-adapter", {"reduction": 4}, merges=False),
    Case("vpt", merges=False, identity=False),
    Case("vpt", {"deep": False, "tokens": 3}, merges=False, identity=False),
    Case("lst", merges=False),
    Case("ssf"),
    Case("decoder-only", adds=False),
    Case("full", adds=False),
]
ADAPTING = [case for case in CASES if "targets" in methods()[case.name].__dataclass_fields__]
TRAINING = [case for case in CASES if case.name != "decoder-only"]


@pytest.fixture
def image():
    return torch.randn(2, 3, 10, 14)  # 5 x 7 patches: windows of 3 are padded on both sides


@pytest.fixture
def installed(make_encoder):
    """Encoder, method and returned parameters; a frozen copy of the encoder as it was is `.original`."""

    def make(case, seed=0):
        torch.manual_seed(seed)
        encoder = make_encoder()
        original = copy.deepcopy(encoder)
        method = build_method(case.name, case.options)
        parameters = install(encoder, method)
        return encoder, original, method, parameters

    return make


def perturb(parameters):
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.1 * torch.randn_like(parameter))


def train_steps(encoder, image, steps, with_auxiliary=True):
    """Adam on a made-up task; returns for each trained name the sum of absolute gradients over the steps."""
    torch.manual_seed(5)
    named = trainable_parameters(encoder.train())
    optimiser = torch.optim.Adam(named.values(), lr=0.01)
    target = torch.randn(encoder(image).shape)
    received = dict.fromkeys(named, 0.0)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = F.mse_loss(encoder(image), target)
        side = auxiliary_loss(encoder)
        (loss + side if with_auxiliary and side is not None else loss).backward()
        for name, parameter in named.items():
            received[name] += 0.0 if parameter.grad is None else float(parameter.grad.abs().sum())
        optimiser.step()
    return received


def test_table_has_every_method():
    assert {case.name for case in CASES} == set(methods())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_starts_as_the_frozen_encoder_and_is_active(case, installed, image):
    encoder, original, _, parameters = installed(case)
    # 1e-6: the base may be called on a flattened map, which can change the order of a sum
    if case.identity:
        torch.testing.assert_close(encoder(image), original(image), rtol=1e-6, atol=1e-6)
    else:
        assert not torch.allclose(encoder(image), original(image), atol=1e-3)
    perturb(parameters)
    assert bool(parameters) == (case in TRAINING)
    assert torch.allclose(encoder(image), original(image), atol=1e-3) == (not parameters)


@pytest.mark.parametrize("case", TRAINING, ids=str)
def test_only_returned_parameters_change(case, installed, image):
    encoder, original, _, parameters = installed(case)
    returned = {id(p) for p in parameters}
    assert returned == {id(p) for p in trainable_parameters(encoder).values()}
    assert len(returned) == len(parameters)
    before = copy.deepcopy(encoder.state_dict())
    train_steps(encoder, image, 3)
    for name, parameter in encoder.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) not in returned), name
    if case.adds:
        frozen = {
            name.replace(".base.", "."): p for name, p in encoder.named_parameters() if not p.requires_grad
        }
        expected = dict(original.named_parameters())
        assert frozen.keys() == expected.keys()
        assert all(torch.equal(p, expected[name]) for name, p in frozen.items())


@pytest.mark.parametrize("case", TRAINING, ids=str)
def test_task_gradient_reaches_all_but_the_listed(case, installed, image):
    encoder, _, method, _ = installed(case)
    received = train_steps(encoder, image, 12, with_auxiliary=False)
    exempt = method.parameters_without_task_gradient()
    for name, total in received.items():
        assert (total > 0) == (not name.endswith(tuple(exempt))), name
    assert all(any(name.endswith(end) for name in received) for end in exempt)
    assert all(len(reason) > 20 for reason in exempt.values())


@pytest.mark.parametrize("case", TRAINING, ids=str)
def test_saved_adapter_loads_under_another_seed(case, installed, image, tmp_path):
    encoder, original, _, parameters = installed(case)
    perturb(parameters)
    save_file(adapter_state_dict(encoder), tmp_path / "adapter.safetensors")
    state = load_file(tmp_path / "adapter.safetensors")
    assert sum(t.numel() for t in state.values()) == sum(p.numel() for p in parameters)

    other, _, _, new = installed(case, seed=1)
    plain = dict(original.named_parameters())
    with torch.no_grad():  # the same backbone, other trained parameters
        for name, p in other.named_parameters():
            if not p.requires_grad:
                p.copy_(plain[name.replace(".base.", ".")])
    perturb(new)
    assert not torch.allclose(other.eval()(image), encoder.eval()(image))
    load_adapter_state_dict(other, state)
    assert torch.equal(other(image), encoder(image))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_merging(case, installed, image):
    encoder, original, _, parameters = installed(case)
    perturb(parameters)
    encoder.eval()
    if not case.merges:
        with pytest.raises(ConfigError, match="cannot be merged: its update depends on the input"):
            merge(encoder)
        assert any(isinstance(m, Unmergeable) for m in encoder.modules())
        return
    expected = encoder(image)
    for _ in range(2):  # the second time there is nothing left to do
        merge(encoder)
        # 1e-5: the product with the merged weight sums in another order
        torch.testing.assert_close(encoder(image), expected, rtol=1e-5, atol=1e-5)
        assert not any(isinstance(m, Mergeable) for m in encoder.modules())
        assert encoder.state_dict().keys() == original.state_dict().keys()
        assert not encoder.blocks[0].attn.qkv.training


@pytest.mark.parametrize("case", CASES, ids=str)
def test_modes(case, installed, image):
    encoder, _, _, parameters = installed(case)
    perturb(parameters)
    assert encoder.train() is encoder
    assert encoder.eval() is encoder
    assert torch.equal(encoder(image), encoder(image))
    for module in encoder.modules():
        assert module.train() is module


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_autocast_keeps_shape_and_dtype(case, dtype, installed, image):
    encoder, original, _, parameters = installed(case)
    perturb(parameters)
    reference = encoder.eval()(image)
    with torch.autocast("cpu", dtype):
        out, plain = encoder(image), original(image)
    assert (out.shape, out.dtype) == (plain.shape, plain.dtype)
    assert out.dtype == dtype
    # bfloat16 keeps 8 bits; the error of a dozen layers in a row stays below 5 % of the range
    assert (out - reference).abs().max() < 0.05 * reference.abs().max()
    if parameters:
        with torch.autocast("cpu", dtype):
            encoder.train()(image).float().square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in parameters)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_half_precision_backbone(case, installed, image):
    encoder, _, _, parameters = installed(case)
    perturb(parameters)
    reference = encoder.eval()(image)
    out = encoder.bfloat16()(image.bfloat16())
    assert out.dtype == torch.bfloat16
    # weights too are rounded to 8 bits here, in every layer
    assert (out - reference).abs().max() < 0.1 * reference.abs().max()


@pytest.mark.parametrize("shape", [(1, 3, 12, 12), (1, 3, 2, 2), (3, 3, 4, 22)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_any_size_and_batch(case, shape, installed):
    encoder, _, _, parameters = installed(case)
    perturb(parameters)
    image = torch.randn(shape)
    assert encoder.train()(image).shape == (shape[0], 4, shape[2] // 2, shape[3] // 2)
    out = encoder.eval()(image)
    # 1e-5: the batch changes the order of sums
    each = torch.cat([encoder(one[None]) for one in image])
    torch.testing.assert_close(out, each, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_copies_and_pickles_after_a_training_step(case, installed, image):
    encoder, _, _, parameters = installed(case)
    perturb(parameters)
    encoder.train()(image).sum()
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert auxiliary_loss(twin) is None
        assert [n for n, p in twin.named_parameters() if p.requires_grad] == list(
            trainable_parameters(encoder)
        )
        assert torch.equal(twin.eval()(image), encoder.eval()(image))
        encoder.train()(image).sum()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_exports(case, installed, image):
    encoder, _, _, parameters = installed(case)
    perturb(parameters)
    program = torch.export.export(encoder.eval(), (image,))
    # float32 rounding: exported, experts compute in shapes that do not hang on the choice (`experts`)
    torch.testing.assert_close(program.module()(image), encoder(image), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", TRAINING, ids=str)
def test_checkpointed_gradients_are_the_same(case, installed, image):
    encoder, _, _, parameters = installed(case)
    perturb(parameters)
    grads = []
    for checkpointed in (False, True):
        encoder.zero_grad()
        torch.manual_seed(7)
        out = checkpoint(encoder, image, use_reentrant=False) if checkpointed else encoder(image)
        side = auxiliary_loss(encoder)
        (out.square().mean() + (0 if side is None else side)).backward()
        grads.append([p.grad.clone() for p in parameters])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    assert sum(float(g.abs().sum()) for g in grads[0]) > 0


@pytest.mark.parametrize("case", ADAPTING, ids=str)
def test_unknown_target(case, installed, make_encoder):
    method = build_method(case.name, {**case.options, "targets": ["attn.qkv", "attn.query"]})
    with pytest.raises(TargetError) as caught:
        install(make_encoder(), method)
    assert "'attn.query' is not there in block 0" in str(caught.value)
    assert all(name in str(caught.value) for name in DEEP)


@pytest.mark.parametrize("case", ADAPTING, ids=str)
def test_second_install_is_refused(case, installed):
    encoder, *_ = installed(case)
    with pytest.raises(TargetError, match=r"is a \w+, not a plain linear .*layer .* installed already"):
        install(encoder, build_method(case.name, case.options))


@pytest.mark.parametrize(
    ("name", "per_block"), [("lora", 12 * 1280), ("conv-lora", 12 * 1280 + 8 * (9 * 3 * 3 + 3) + 48)]
)
def test_parameter_counts_of_vit_h(name, per_block, make_encoder):
    """3.997 M and 4.020 M of the paper, less the decoder's 3,505,536."""
    with torch.device("meta"):
        encoder = make_encoder(1280, (14,) * 32)
        total = count_parameters(encoder).total
        install(encoder, build_method(name))
    counted = count_parameters(encoder)
    assert counted == (32 * per_block, total + 32 * per_block)
    assert counted.trainable + 3_505_536 == {"lora": 3_997_056, "conv-lora": 4_020_096}[name]
