"""The gate against the official formula, written out with loops and scipy's normal distribution."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from convlora.adapters.base import Samples, keyed_normal
from convlora.adapters.gating import NoisyTopKGate, balance_loss, cv_squared, expected_load, top_k_gates


def slow_load(clean, noisy, std, top_k):
    """Shazeer et al. 2017, equations 8 to 10, one sample and expert at a time."""
    load = np.zeros(clean.shape[1])
    for b in range(clean.shape[0]):
        for e in range(clean.shape[1]):
            others = sorted((noisy[b, i] for i in range(clean.shape[1]) if i != e), reverse=True)
            load[e] += norm.cdf((clean[b, e] - others[top_k - 1]) / std[b, e])
    return load


def slow_cv_squared(x):
    mean = sum(x) / len(x)
    return sum((v - mean) ** 2 for v in x) / (len(x) - 1) / (mean**2 + 1e-10)


@pytest.fixture
def logits():
    clean = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    std = torch.rand(5, 6, dtype=torch.float64, requires_grad=True)
    return clean, (clean + torch.randn(5, 6) * std).detach(), std


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_expected_load(logits, top_k):
    clean, noisy, std = logits
    load = expected_load(clean, noisy, std, top_k).sum(0)
    expected = slow_load(clean.detach().numpy(), noisy.numpy(), std.detach().numpy(), top_k)
    np.testing.assert_allclose(load.detach().numpy(), expected, rtol=1e-12)
    load.square().sum().backward()
    assert clean.grad.abs().max() > 0.1
    assert std.grad.abs().max() > 0.1


def test_expected_load_is_the_probability_of_being_chosen():
    """Draw one expert's noise again and count how often it is in the top 2."""
    clean, std = torch.randn(1, 4), torch.rand(1, 4) + 0.1
    noisy = clean + torch.randn(1, 4) * std
    draws = noisy.repeat(200_000, 1)
    draws[:, 1] = clean[0, 1] + torch.randn(200_000) * std[0, 1]
    counted = (draws.topk(2, dim=1).indices == 1).any(1).float().mean()
    # standard error of 200,000 draws: at most 0.0011; five of them
    assert abs(counted - expected_load(clean, noisy, std, 2)[0, 1]) < 0.006
    assert 0.01 < counted < 0.99


def test_cv_squared():
    x = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    assert cv_squared(x).item() == pytest.approx(13 / 3 / (64 / 9), rel=1e-9)  # variance 13/3, mean 8/3
    assert cv_squared(x).item() == pytest.approx(slow_cv_squared(x.tolist()), rel=1e-12)
    assert cv_squared(torch.full((8,), 3.0)) == 0
    assert cv_squared(torch.tensor([7.0])) == 0
    assert cv_squared(torch.zeros(4)) == 0  # not NaN
    one_of_eight = torch.eye(8)[3]
    assert balance_loss(one_of_eight, one_of_eight).item() == pytest.approx(16, rel=1e-5)  # 2 M: the worst


@pytest.mark.parametrize(("experts", "top_k"), [(6, 1), (6, 3), (3, 3), (1, 1)])
def test_training_forward_is_the_formula(experts, top_k):
    gate = NoisyTopKGate(4, experts, top_k, dtype=torch.float64)
    torch.nn.init.normal_(gate.w_gate)
    torch.nn.init.normal_(gate.w_noise)
    features = torch.randn(7, 4, dtype=torch.float64)
    torch.manual_seed(3)
    gates, indices, balance = gate(features)

    torch.manual_seed(3)
    noise = torch.randn(7, experts, dtype=torch.float64).numpy()
    clean = (features @ gate.w_gate).detach().numpy()
    std = np.log1p(np.exp((features @ gate.w_noise).detach().numpy())) + 0.01
    noisy = clean + noise * std
    dense = np.zeros((7, experts))
    for b in range(7):
        chosen = np.argsort(-noisy[b])[:top_k]
        weights = [math.exp(noisy[b, e]) for e in chosen]
        assert indices[b].tolist() == chosen.tolist()
        dense[b, chosen] = np.array(weights) / sum(weights)
        np.testing.assert_allclose(gates[b].detach().numpy(), dense[b, chosen], rtol=1e-12)
    load = slow_load(clean, noisy, std, top_k) if top_k < experts else (dense > 0).sum(0).astype(float)
    expected = 0.0 if experts == 1 else slow_cv_squared(dense.sum(0)) + slow_cv_squared(load)
    assert balance.item() == pytest.approx(expected, rel=1e-10)
    assert (expected > 1e-3) == (top_k < experts or experts == 3)


def test_evaluation_is_clean_and_deterministic():
    gate = NoisyTopKGate(4, 6, 2).eval()
    torch.nn.init.normal_(gate.w_gate)
    torch.nn.init.constant_(gate.w_noise, 5.0)
    features = torch.randn(7, 4)
    gates, indices, balance = gate(features)
    values, expected = (features @ gate.w_gate).topk(2, dim=1)
    assert balance is None
    assert torch.equal(indices, expected)
    torch.testing.assert_close(gates, values.softmax(1))
    assert torch.equal(gates, gate(features).gates)


def test_single_expert_has_a_zero_gradient():
    """Not None, which distributed training reports as an unused parameter."""
    gate = NoisyTopKGate(3, 1)
    balance = gate(torch.randn(6, 3)).balance
    balance.backward()
    assert balance == 0
    assert torch.equal(gate.w_gate.grad, torch.zeros(3, 1))


def test_starts_uniform_and_breaks_ties_by_number():
    gate = NoisyTopKGate(3, 8)
    features = torch.randn(4000, 3)
    counts = gate(features).indices.flatten().bincount(minlength=8)
    assert counts.min() > 400  # 500 expected, standard deviation 21
    assert gate.eval()(features).indices.unique().tolist() == [0]
    assert top_k_gates(torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0]]), 3)[1].tolist() == [[1, 2, 4]]


def test_balance_loss_alone_trains_a_top_1_gate():
    gate = NoisyTopKGate(3, 8)
    gates, _, balance = gate(torch.randn(6, 3))
    assert torch.equal(gates, torch.ones(6, 1))
    balance.backward()
    assert gate.w_gate.grad.abs().sum() > 0
    assert gate.w_noise.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_computes_in_float32_under_autocast(dtype):
    gate = NoisyTopKGate(4, 6, 2)
    torch.nn.init.normal_(gate.w_gate)
    features = torch.randn(7, 4)
    torch.manual_seed(1)
    plain = gate(features)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype):
        cast = gate(features)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(plain, cast, strict=True))
    half = gate.to(dtype)(features.to(dtype))
    assert half.balance.isfinite()


def keyed(gate, features, keys):
    gate.samples = Samples(len(keys), tuple(keys), layer=3)
    return gate(features)


def test_routing_and_balance_do_not_depend_on_the_partition():
    """Four images of five windows at once, in two halves, and one by one in another order."""
    gate = NoisyTopKGate(4, 6, 2, dtype=torch.float64)
    torch.nn.init.normal_(gate.w_gate)
    torch.nn.init.normal_(gate.w_noise)
    features, keys = torch.randn(4, 5, 4, dtype=torch.float64), [7, 1, 2**60, 3]
    whole = keyed(gate, features.flatten(0, 1), keys)
    halves = [keyed(gate, features[i : i + 2].flatten(0, 1), keys[i : i + 2]) for i in (0, 2)]
    single = {i: keyed(gate, features[i], [keys[i]]) for i in (2, 0, 3, 1)}
    for parts in (halves, [single[i] for i in range(4)]):
        assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices)
        torch.testing.assert_close(torch.cat([part.gates for part in parts]), whole.gates)
        torch.testing.assert_close(torch.stack([part.balance for part in parts]).mean(), whole.balance)
    gate.samples = Samples(1, None, 0)
    assert not torch.isclose(gate(features.flatten(0, 1)).balance, whole.balance)


def test_balance_is_the_mean_over_images_of_the_formula():
    importance, load = torch.rand(3, 6, dtype=torch.float64), torch.rand(3, 6, dtype=torch.float64)
    rows = [
        slow_cv_squared(i.tolist()) + slow_cv_squared(x.tolist())
        for i, x in zip(importance, load, strict=True)
    ]
    assert balance_loss(importance, load).item() == pytest.approx(sum(rows) / 3, rel=1e-12)


def test_noise_is_normal_and_differs_between_images_layers_and_runs():
    draws = [
        keyed_normal(Samples(2, keys, layer), 2 * 2000, 8)
        for keys, layer in (((1, 2), 0), ((1, 2), 1), ((3, 4), 0))
    ]
    for drawn in draws:
        assert abs(drawn.mean()) < 5 / 32_000**0.5  # five standard errors
        assert abs(drawn.std() - 1) < 5 / (2 * 32_000) ** 0.5
    parts = [part for drawn in draws for part in drawn.chunk(2)]
    assert all(not torch.equal(a, b) for i, a in enumerate(parts) for b in parts[:i])
    assert torch.equal(keyed_normal(Samples(1, (2,), 0), 2000, 8), parts[1])
