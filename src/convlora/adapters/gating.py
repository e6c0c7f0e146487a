"""Noisy top-k gate of a mixture of experts and its balance loss (Shazeer et al., ICLR 2017, section 4)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convlora.adapters.base import Samples, at_least_float32, autocast_off, keyed_normal
from convlora.transfer import need_not_wait

NOISE_FLOOR = 0.01
"""Smallest standard deviation of the gate's noise."""


class Routing(NamedTuple):
    """Where a gate sends each sample.

    Attributes:
        gates: (B, K) weights, positive, largest first; they sum to one per sample, but for a gate of `full`
            softmax, which leaves the share of the other experts out.
        indices: (B, K) int64, the experts that the weights belong to.
        balance: scalar, zero when all experts get the same share; None in evaluation.
    """

    gates: Tensor
    indices: Tensor
    balance: Tensor | None


class NoisyTopKGate(nn.Module):
    """Choose `top_k` of `num_experts` experts for each sample.

    With p the sample's features: clean = p W_gate / T (T = 1 there); in training,
    noisy = clean + N(0, 1) (softplus(p W_noise) + 0.01); the gates are the softmax over the K largest logits.
    Both weights start at zero, so routing starts uniform. Computes in float32 at least, under autocast too.

    The balance loss is that of each image's samples (its windows; in a global block there is one), averaged
    over the images, as the official setting of one image a device has it. So it does not depend on how a
    batch is cut into processes and micro-batches; nor does the noise, where the images have keys
    (`samples`). Where nothing was announced, the whole batch counts as one image.

    Where logits are equal, the expert with the lower number wins: in evaluation an untrained gate sends
    everything to expert 0 on every device (`torch.topk`, as in the official code, leaves that order open).

    Args:
        channels: length of p.
        num_experts: M.
        top_k: K, 1 to M.
        full: the gates are shares of the softmax over all logits (Switch Transformer, Fedus et al., JMLR
            2022, equation 2), so that the task trains the gate for K = 1 too. The balance loss is the same.
        temperature: T.
    """

    def __init__(
        self,
        channels: int,
        num_experts: int,
        top_k: int = 1,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        full: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.num_experts = num_experts
        self.top_k, self.full = top_k, full
        self.samples: Samples | None = None
        self.w_gate = nn.Parameter(torch.zeros(channels, num_experts, device=device, dtype=dtype))
        self.w_noise = nn.Parameter(torch.zeros(channels, num_experts, device=device, dtype=dtype))

    def forward(self, features: Tensor) -> Routing:
        """Route (B, channels) features; the balance loss comes in training mode only."""
        dtype = at_least_float32(self.w_gate.dtype)
        with autocast_off(features.device.type):
            features = features.to(dtype)
            clean = features @ self.w_gate.to(dtype) / self.temperature
            if not self.training:
                gates, indices = top_k_gates(clean, self.top_k)
                return Routing(self._weights(clean, gates, indices), indices, None)
            noise_std = F.softplus(features @ self.w_noise.to(dtype)) + NOISE_FLOOR
            noisy = clean + self._noise(clean) * noise_std
            gates, indices = top_k_gates(noisy, self.top_k)
            dense = torch.zeros_like(clean).scatter(1, indices, gates)
            if self.top_k < self.num_experts:
                load = expected_load(clean, noisy, noise_std, self.top_k)
            else:  # every expert is always chosen
                load = (dense > 0).to(dtype)
            balance = balance_loss(self._by_image(dense), self._by_image(load))
            return Routing(self._weights(noisy, gates, indices), indices, balance)

    def _weights(self, logits: Tensor, gates: Tensor, indices: Tensor) -> Tensor:
        return logits.softmax(dim=1).gather(1, indices) if self.full else gates

    def _noise(self, clean: Tensor) -> Tensor:
        if self.samples is None or self.samples.keys is None:
            return torch.randn_like(clean)
        noise = keyed_normal(self.samples, *clean.shape)
        return noise.to(clean.device, clean.dtype, non_blocking=need_not_wait(clean.device))

    def _by_image(self, rows: Tensor) -> Tensor:
        """Sum (B, M) over the samples of each image: (images, M)."""
        images = 1 if self.samples is None else self.samples.images
        return rows.view(images, -1, rows.shape[1]).sum(1)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        return f"num_experts={self.num_experts}, top_k={self.top_k}, full={self.full}"


class SoftGate(nn.Module):
    """Weights of all experts, softmax(p W_gate / T), for features p of a sample or of a position; no noise.

    W_gate starts at zero, so all experts start with the same weight. Computes in float32 at least.

    Args:
        channels: length of p.
        num_experts: M.
        temperature: T.
    """

    def __init__(
        self,
        channels: int,
        num_experts: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.w_gate = nn.Parameter(torch.zeros(channels, num_experts, device=device, dtype=dtype))

    def forward(self, features: Tensor) -> Tensor:
        """(..., channels) to (..., M), positive, summing to one."""
        dtype = at_least_float32(self.w_gate.dtype)
        with autocast_off(features.device.type):
            return (features.to(dtype) @ self.w_gate.to(dtype) / self.temperature).softmax(dim=-1)


def top_k_gates(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Softmax over the `top_k` largest of (B, M) logits, of equal ones the first: (B, K) gates, indices."""
    values, order = torch.sort(logits, dim=1, descending=True, stable=True)
    return values[:, :top_k].softmax(dim=1), order[:, :top_k]


def expected_load(clean: Tensor, noisy: Tensor, noise_std: Tensor, top_k: int) -> Tensor:
    """Probability that a sample goes to an expert if only that expert's noise were drawn again.

    P(e in the top K) = Phi((clean_e - t_e) / std_e), where t_e is the K-th largest of the other noisy logits.

    Args:
        clean: (B, M) logits without noise.
        noisy: (B, M) logits with noise.
        noise_std: (B, M) standard deviation of the noise.
        top_k: K, less than M.

    Returns:
        (B, M), differentiable in all three; summed over samples, the expected load.
    """
    ranked = noisy.sort(dim=1, descending=True).values
    last_in, first_out = ranked[:, top_k - 1 : top_k], ranked[:, top_k : top_k + 1]
    threshold = torch.where(noisy > first_out, first_out, last_in)
    z = (clean - threshold) / noise_std
    return 0.5 * (1 + torch.erf(z / math.sqrt(2)))


def cv_squared(x: Tensor) -> Tensor:
    """Squared coefficient of variation along the last axis, unbiased variance; zero for a single number."""
    if x.shape[-1] == 1:
        # with a gradient of zero: distributed training takes None for an unused parameter
        return (0 * x).sum(-1)
    return x.var(-1) / (x.mean(-1) ** 2 + 1e-10)


def balance_loss(importance: Tensor, load: Tensor) -> Tensor:
    """CV^2(importance) + CV^2(load), the mean over images.

    Args:
        importance: (images, M), sum of the gates of an image's samples for each expert.
        load: (images, M), expected number of its samples for each expert.
    """
    return (cv_squared(importance) + cv_squared(load)).mean()
