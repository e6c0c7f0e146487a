"""The experts against the slow formula: interpolate, convolve, GELU, interpolate back."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from convlora.adapters import experts as module
from convlora.adapters.experts import MultiScaleExperts, cubic, downsample
from convlora.adapters.fused_expert import rows_of

SIZES = [(5, 7), (14, 14), (16, 16), (3, 2), (1, 1), (1, 6)]


def slow_expert(z, weight, bias, scale):
    """One expert on one sample, z (H, W, r), as the paper and the official code compute it."""
    coarse = z.permute(2, 0, 1)[None]
    fine = coarse if scale == 1 else F.interpolate(coarse, scale_factor=scale, mode="bicubic")
    fine = F.gelu(F.conv2d(fine, weight, bias, padding=1))
    out = fine if scale == 1 else F.interpolate(fine, size=coarse.shape[-2:], mode="bicubic")
    return out[0].permute(1, 2, 0)


def slow_experts(experts, z, gates, indices):
    samples = []
    for b in range(len(z)):
        out = torch.zeros_like(z[b])
        for k, e in enumerate(indices[b].tolist()):
            one = slow_expert(z[b], experts.weight[e], experts.bias[e], experts.scales[e])
            out = out + gates[b, k] * one
        samples.append(out)
    return torch.stack(samples)


def gradients(function, experts, z, gates, indices):
    z, gates = z.clone().requires_grad_(), gates.clone().requires_grad_()
    out = function(z, gates, indices)
    torch.manual_seed(9)
    inputs = [z, experts.weight, experts.bias, gates]
    return out, torch.autograd.grad(out, inputs, torch.randn(out.shape, dtype=out.dtype), allow_unused=True)


def compare(experts, z, gates, indices, tolerance):
    out, grads = gradients(experts, experts, z, gates, indices)
    expected, wanted = gradients(
        lambda *arguments: slow_experts(experts, *arguments), experts, z, gates, indices
    )
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(out, expected, **close)
    assert out.abs().max() > 0.01
    for name, got, want in zip(("z", "weight", "bias", "gates"), grads, wanted, strict=True):
        torch.testing.assert_close(got, want, **close, msg=lambda m, name=name: f"{name}: {m}")
        assert got.abs().max() > 0.01


def make(scales, channels=3, dtype=torch.float64):
    experts = MultiScaleExperts(channels, scales, dtype=dtype)
    torch.nn.init.normal_(experts.bias)
    return experts


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("scale", range(1, 9))
def test_one_scale_is_exact(scale, size):
    experts = make((scale,))
    z = torch.randn(2, *size, 3, dtype=torch.float64)
    gates = torch.ones(2, 1, dtype=torch.float64)
    # float64 rounding through a few hundred sums
    compare(experts, z, gates, torch.zeros(2, 1, dtype=torch.int64), 1e-11)


@pytest.mark.parametrize("size", [(6, 5), (24, 16), (32, 24), (21, 1)], ids=str)
@pytest.mark.parametrize("scale", [1, 2, 7, 8])
def test_one_scale_is_exact_with_many_channels(scale, size):
    """What even scales would hold is then computed again."""
    experts = make((scale,), channels=28)
    z = torch.randn(2, *size, 28, dtype=torch.float64)
    compare(experts, z, torch.rand(2, 1).double(), torch.zeros(2, 1, dtype=torch.int64), 1e-11)


@pytest.mark.parametrize("size", [(6, 5), (24, 16), (35, 40), (3, 50)], ids=str)
@pytest.mark.parametrize("scale", range(2, 9))
def test_fused_experts_are_exact(scale, size, monkeypatch):
    """One expert for all samples, and one of its own for each; in one block of rows and in several."""
    monkeypatch.setattr(module, "_KEPT", 0)
    monkeypatch.setattr(module, "_DIRECT", 0)
    calls = []
    fused = module.fused_expert
    monkeypatch.setattr(module, "fused_expert", lambda *given: (calls.append(1), fused(*given))[1])
    experts = make((scale, scale + 2, 1))
    z = torch.randn(3, *size, 3, dtype=torch.float64)
    for chosen in ([0, 0, 0], [0, 1, 0]):
        indices = torch.tensor(chosen)[:, None]
        compare(experts, z, torch.rand(3, 1).double(), indices, 1e-11)
    assert len(calls) == 2


def test_fused_experts_cut_rows_into_blocks():
    """Else the products with the maps of the rows would grow with the square of the height."""
    banks = module.build_banks((8,), 0, 64, torch.device("cpu"), torch.float32)
    rows = rows_of(*banks)
    assert rows.up.shape == (1, 8, 8 * 4, 3 * (8 + 2 * 3))
    assert rows.back.shape == (1, 8, 3 * 8, (8 + 2 * 3) * 4)
    # every weight is within reach of its block: none is lost
    torch.testing.assert_close(rows.up.sum(), banks[0].sum())
    torch.testing.assert_close(rows.back.abs().sum(), banks[0].abs().sum())


@pytest.mark.parametrize(
    ("scale", "channels", "values"),  # values per cell; 0 where they are computed again
    [
        (1, 3, 3),
        (2, 3, 28),
        (7, 3, 6),
        (8, 3, 60),
        (8, 8, 160),
        (7, 32, 32),
        (8, 16, 320),
        (2, 32, 0),
        (8, 32, 0),
    ],
)
def test_holds_little_for_the_backward_pass(scale, channels, values):
    experts = make((scale,), channels)
    z = torch.randn(1, 16, 16, channels, dtype=torch.float64, requires_grad=True)
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if tensor.numel() >= z.numel() and storage.data_ptr() != z.untyped_storage().data_ptr():
            held[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = experts(z, None, torch.zeros(1, 1, dtype=torch.int64))
    fixed = 9 * channels**2, 4 * 16 * 16  # the kernel in another order, the weights of the columns
    found = sum(n for n in held.values() if n not in fixed) / 16**2
    assert 0.4 * values <= found <= 1.05 * values  # PyTorch's product may keep a copy of z or not
    out.sum().backward()
    assert z.grad.abs().min() > 0


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_routing_within_a_batch_is_exact(size, top_k):
    experts = make((1, 2, 3, 4, 5, 6, 7, 8, 2, 11))
    indices = torch.tensor([[0, 7], [1, 2], [3, 1], [9, 4], [5, 5], [8, 6], [6, 0]])[:, :top_k]
    z = torch.randn(7, *size, 3, dtype=torch.float64)
    compare(experts, z, torch.rand(7, top_k, dtype=torch.float64), indices, 1e-11)


@pytest.mark.parametrize("kept", [530, 0], ids=["held", "computed again"])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", ["ones", "per map", "per position"])
def test_mixture_of_all_is_exact(size, kind, kept, monkeypatch):
    monkeypatch.setattr(module, "_KEPT", kept)
    runs = []
    on_fine_grid = module.on_fine_grid
    monkeypatch.setattr(
        module, "on_fine_grid", lambda *arguments: (runs.append(1), on_fine_grid(*arguments))[1]
    )
    experts = make((1, 2, 3, 4, 5, 8, 2))
    z = torch.randn(2, *size, 3, dtype=torch.float64, requires_grad=True)
    shape = {"ones": (2, 1, 1, 7), "per map": (2, 1, 1, 7), "per position": (2, *size, 7)}[kind]
    weights = torch.ones(shape) if kind == "ones" else torch.rand(shape)
    weights = weights.double().requires_grad_()
    given = {"ones": None, "per map": weights.view(2, -1), "per position": weights}[kind]
    out = experts.mixed(z, given)
    expected = torch.zeros_like(out)
    for e, scale in enumerate(experts.scales):
        one = torch.stack([slow_expert(sample, experts.weight[e], experts.bias[e], scale) for sample in z])
        expected = expected + weights[..., e : e + 1] * one
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)  # float64 rounding
    inputs = [z, experts.weight, experts.bias, *([] if given is None else [weights])]
    direction = torch.randn_like(out)
    for got, want in zip(
        torch.autograd.grad(out, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        assert got.abs().max() > 0
    assert len(runs) == (3 if kept else 6)  # scales 1 and 2, twice where they are computed again


def test_float32():
    experts = make(tuple(range(1, 9)), dtype=torch.float32)
    z = torch.randn(8, 14, 14, 3)
    # F.interpolate computes its coordinates in float32: an error of 1e-6 of a pixel, times sums over the map
    compare(experts, z, torch.ones(8, 1), torch.arange(8)[:, None], 2e-4)


def test_repeated_scales_are_different_experts():
    experts = make((3, 3))
    z = torch.randn(1, 4, 4, 3, dtype=torch.float64)
    first, second = (experts(z, torch.ones(1, 1), torch.tensor([[e]])) for e in (0, 1))
    assert not torch.allclose(first, second)


def test_experts_not_chosen_get_a_zero_gradient():
    experts = make(tuple(range(1, 9)))
    experts(torch.randn(2, 5, 5, 3), torch.ones(2, 1), torch.tensor([[1], [4]])).sum().backward()
    for parameter in experts.parameters():
        touched = parameter.grad.flatten(1).abs().sum(1) > 0
        assert touched.nonzero().flatten().tolist() == [1, 4]


def test_starts_as_convolutions():
    experts = MultiScaleExperts(3, range(1, 9))
    assert experts.bias.abs().sum() == 0
    bound = 1 / (3 * 9) ** 0.5  # nn.Conv2d: uniform within 1 / sqrt(fan in)
    assert experts.weight.abs().amax((1, 2, 3, 4)).min() > 0.9 * bound
    assert experts.weight.abs().max() <= bound


def test_no_value_is_read_from_the_device():
    """Fake tensors have no values, so anything that depends on one, such as nonzero or item, raises."""
    real = make((1, 2, 3), dtype=torch.float32)
    real(torch.randn(2, 5, 6, 3), torch.ones(2, 1), torch.tensor([[0], [1]]))  # fills the cache first
    with FakeTensorMode():
        experts = MultiScaleExperts(3, (1, 2, 3))
        indices = torch.randint(0, 3, (4, 2))
        out = experts(torch.randn(4, 5, 6, 3), torch.rand(4, 2), indices)
        out.sum().backward()
    assert out.shape == (4, 5, 6, 3)
    assert experts.weight.grad.shape == experts.weight.shape
    real(
        torch.randn(2, 5, 6, 3), torch.ones(2, 1), torch.tensor([[0], [1]])
    )  # and it holds real tensors still


@pytest.mark.parametrize(
    ("scale", "kept", "channels"),
    [(2, "_kept_matrix", 3), (3, "_kept_banks", 3), (8, "_kept_rows", 28), (8, "_kept_columns", 28)],
)
def test_prediction_then_training(scale, kept, channels):
    """Tensors made in inference mode cannot serve a backward pass; the cache must not hold any."""
    experts = make((scale, 9), channels, dtype=torch.float32)
    cache = getattr(module, kept)
    cache.cache_clear()
    z, gates, indices = (
        torch.randn(1, 13, 13, channels),
        torch.ones(1, 1),
        torch.zeros(1, 1, dtype=torch.int64),
    )
    with torch.inference_mode():
        experts(z, gates, indices)
    assert cache.cache_info().currsize > 0
    experts(z.requires_grad_(), gates, indices).sum().backward()
    assert z.grad.abs().sum() > 0


def test_reading_the_choice_gives_what_fixed_shapes_give():
    """On CPUs samples of one parity run together; elsewhere, and when traced, shapes must not hang on it."""
    experts = make((1, 2, 3, 4, 7, 8))
    z = torch.randn(6, 9, 8, 3, dtype=torch.float64)
    for chosen in ([5, 0, 3, 3, 1, 4], [2, 2, 2, 2, 2, 2], [0, 4, 2, 0, 4, 0]):
        index = torch.tensor(chosen)
        read, masked = experts._read(z, index), experts._masked(z, index)
        torch.testing.assert_close(read, masked, rtol=1e-12, atol=1e-12)  # double precision rounding
        assert read.abs().amax((1, 2, 3)).min() > 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_computes_in_float32_under_autocast(dtype):
    experts = make((1, 2, 7), dtype=torch.float32)
    z, gates, indices = torch.randn(3, 6, 5, 3), torch.ones(3, 1), torch.arange(3)[:, None]
    plain = experts(z, gates, indices)
    with torch.autocast("cpu", dtype):
        cast = experts(z, gates, indices)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)


def test_fused_backward_may_stand_inside_autocast():
    """As in a training loop of one's own; what PyTorch differentiates itself is then in half precision."""
    experts, found = make((8,), channels=28, dtype=torch.float32), []
    z = torch.randn(4, 6, 5, 28)
    for inside in (False, True):
        experts.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = experts(z, None, torch.zeros(4, 1, dtype=torch.int64)).square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        found.append(experts.weight.grad.clone())
    assert found[0].abs().max() > 0.1
    assert torch.equal(*found)


def test_compiles_without_a_graph_break():
    experts = make((2, 3), dtype=torch.float32)
    compiled = torch.compile(experts, backend="eager", fullgraph=True)
    for size in ((4, 5), (6, 3)):  # the second size makes the compiler try dynamic shapes
        z, indices = torch.randn(2, *size, 3), torch.tensor([[0], [1]])
        found, expected = (module(z, torch.ones(2, 1), indices) for module in (compiled, experts))
        # traced, one convolution serves all samples; some processors round its sums in another order
        torch.testing.assert_close(found, expected)


def test_cubic_is_a_partition_of_one():
    x = torch.rand(50, dtype=torch.float64)
    total = sum(cubic(x + k) for k in (-2, -1, 0, 1))
    torch.testing.assert_close(total, torch.ones_like(x))
    assert cubic(torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0])).tolist() == [1, 0.59375, 0, -0.09375, 0, 0]


def test_downsample_sums_over_the_cell():
    fine = torch.arange(16.0).view(1, 4, 1, 1, 4, 1)
    rows = torch.tensor([1.0, 0, 0, 2]).view(1, 4, 1)
    columns = torch.tensor([0, 1.0, 0, 0]).view(1, 4, 1)
    assert downsample(fine, rows, columns).item() == 1 + 2 * 13
    odd = torch.tensor([[[2.0, 3.0]]])
    assert downsample(torch.ones(1, 1, 2, 1, 1, 2), odd, odd).flatten().tolist() == [4, 6, 6, 9]


def test_counting_memory_without_values_sees_what_is_held():
    """`--dry-run` counts a step on tensors without values; experts that hold nothing must not there."""
    held = {}

    def pack(tensor):
        held[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        return tensor

    with FakeTensorMode():
        experts = MultiScaleExperts(32, (4, 6, 8))
        z = torch.randn(1, 32, 32, 32, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = experts.mixed(z)
        out.sum().backward()
    assert z.grad.shape == z.shape
    weights = experts.weight.untyped_storage().nbytes() + z.untyped_storage().nbytes()
    assert 0 < sum(held.values()) <= 2 * weights  # the maps would be 60 times z
