"""Conv-LoRA as the official code computes it: experts one by one, each on upsampled windows."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convlora.adapters.gating import NoisyTopKGate


class OfficialConvLoRA(nn.Module):
    """A linear layer plus (alpha / r) B (z + E_g(z)), z = A x, on maps (B, H, W, C), one expert a window.

    Eager: the host reads which windows chose an expert (as the official dispatcher does), then interpolates,
    convolves and interpolates back those windows.
    """

    def __init__(self, base: nn.Linear, rank: int = 3, alpha: float = 32.0, experts: int = 8) -> None:
        super().__init__()
        self.base, self.scaling = base, alpha / rank
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.lora_B = nn.Parameter(torch.randn(base.out_features, rank) * 0.02)
        self.gate = NoisyTopKGate(rank, experts)
        self.experts = nn.ModuleList(nn.Conv2d(rank, rank, 3, padding=1) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, in) to (B, H, W, out)."""
        z = F.linear(x, self.lora_A).permute(0, 3, 1, 2)
        routing = self.gate(z.mean((2, 3)))
        chosen = routing.indices[:, 0]
        self.aux_loss = routing.balance
        mixed = torch.zeros_like(z)
        for e, convolution in enumerate(self.experts):
            windows = (chosen == e).nonzero()[:, 0]
            if not len(windows):
                continue
            part = self._at_scale(z[windows], convolution, e + 1)
            mixed = mixed.index_add(0, windows, part * routing.gates[windows, :, None, None])
        update = F.linear((z + mixed).permute(0, 2, 3, 1), self.lora_B)
        return self.base(x) + self.scaling * update

    def _at_scale(self, z: Tensor, convolution: nn.Module, scale: int) -> Tensor:
        if scale == 1:
            return F.gelu(convolution(z))
        fine = F.interpolate(z, scale_factor=scale, mode="bicubic")
        return F.interpolate(F.gelu(convolution(fine)), size=z.shape[-2:], mode="bicubic")
