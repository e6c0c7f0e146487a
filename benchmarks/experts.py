"""One Conv-LoRA expert, forward and backward: ours against interpolate, convolve, interpolate.

    python benchmarks/experts.py                       # a 64x64 grid, scales 1 to 8: about a minute
    python benchmarks/experts.py --grid 14 --batch 25  # the windows of one image
    python benchmarks/experts.py --ranks 3,8,16,32

Both sides in turn in one process, on the same map and weights: gradients of map, kernel and bias. `routed`:
every sample has its own scale of 1 to 8, as in a layer; the other side loops over the scales that were
chosen, as the official code does. `all`: every position weighs all scales, as with the default preset's
router; beside it `floor`, GELU and its derivative of the fine pixels that are read, and the products with
the kernels, forward and backward, of the coarse map alone. Prints JSON: milliseconds, ratios (medians over
neighbouring runs) and the largest difference of outputs and gradients, over the largest value.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common import in_turn, parser, ratio, report, summary
from convlora.adapters.experts import MultiScaleExperts

SCALES = (1, 2, 3, 4, 5, 6, 7, 8)


def slow_expert(experts: MultiScaleExperts, z: Tensor, expert: int) -> Tensor:
    """An expert as the formula reads; (B, H, W, r) to the same."""
    coarse, scale = z.permute(0, 3, 1, 2), experts.scales[expert]
    fine = F.interpolate(coarse, scale_factor=scale, mode="bicubic") if scale > 1 else coarse
    fine = F.gelu(F.conv2d(fine, experts.weight[expert], experts.bias[expert], padding=1))
    out = F.interpolate(fine, size=coarse.shape[-2:], mode="bicubic") if scale > 1 else fine
    return out.permute(0, 2, 3, 1)


def slow_routed(experts: MultiScaleExperts, z: Tensor, indices: Tensor) -> Tensor:
    """Expert by expert, each on the samples that chose it."""
    out = torch.zeros_like(z)
    for expert in range(len(experts.scales)):
        chosen = (indices[:, 0] == expert).nonzero()[:, 0]
        if len(chosen):
            out = out.index_copy(0, chosen, slow_expert(experts, z[chosen], expert))
    return out


def slow_mixture(experts: MultiScaleExperts, z: Tensor, weights: Tensor) -> Tensor:
    """All experts, each weighted at every position."""
    outputs = [slow_expert(experts, z, e) for e in range(len(experts.scales))]
    return (torch.stack(outputs, dim=-1) * weights[..., None, :]).sum(-1)


class Floor:
    """What no exact way can leave out, on arrays that are there: no interpolation, no weighted sums.

    GELU, once, and its derivative of the fine pixels that the down step reads: s^2 a cell up to scale 2, 16
    where the scale is even, 1 where it is odd. A product with the kernel, and two for its gradients.
    """

    def __init__(self, rank: int, scales: tuple[int, ...], cells: int, device: torch.device) -> None:
        self.z, self.grad = (torch.randn(cells, n * rank, device=device) for n in (1, 9))
        self.kernel = torch.randn(rank, 9 * rank, device=device)
        read = [s**2 if s <= 2 else 1 if s % 2 else 16 for s in scales]
        self.fine = [torch.randn(n * cells, rank, device=device) for n in read]
        self.out = [torch.empty_like(fine) for fine in self.fine]

    def __call__(self) -> list[Tensor]:
        """Do it once."""
        for fine, out in zip(self.fine, self.out, strict=True):
            torch.ops.aten.gelu.out(fine, out=out)
            torch.ops.aten.gelu_backward.grad_input(out, fine, grad_input=out)
            torch.mm(self.z, self.kernel)
            torch.mm(self.z.t(), self.grad)
            torch.mm(self.grad, self.kernel.t())
        return self.out


def gradients(run: Callable[[], Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The output and the gradients of its sum of squares."""
    out = run()
    return [out, *torch.autograd.grad(out.square().sum(), inputs)]


def measure(
    rank: int, scales: tuple[int, ...], indices: Tensor, options: argparse.Namespace, mixed: bool = False
) -> dict[str, Any]:
    torch.manual_seed(0)
    device = torch.device(options.device)
    experts = MultiScaleExperts(rank, scales, device)
    torch.nn.init.normal_(experts.bias)
    z = torch.randn(options.batch, options.grid, options.grid, rank, device=device, requires_grad=True)
    inputs = [z, experts.weight, experts.bias]
    slow, ours = partial(slow_routed, experts, z, indices), partial(experts, z, None, indices)
    if len(scales) == 1:
        slow = partial(slow_expert, experts, z, 0)
    elif mixed:
        weights = torch.rand(*z.shape[:3], len(scales), device=device, requires_grad=True)
        inputs.append(weights)
        slow, ours = partial(slow_mixture, experts, z, weights), partial(experts.mixed, z, weights)
    sides = {"ours": partial(gradients, ours, inputs), "slow": partial(gradients, slow, inputs)}
    if mixed:
        sides["floor"] = Floor(rank, scales, z[..., 0].numel(), device)
    times = in_turn(sides, options.repeats, warm_up=2)
    pairs = zip(sides["ours"](), sides["slow"](), strict=True)
    found = summary({name: [1e3 * t for t in values] for name, values in times.items()})
    return {
        "milliseconds": found,
        "times faster": ratio(times["slow"], times["ours"]),
        **({"over the floor": ratio(times["ours"], times["floor"])} if mixed else {}),
        "largest difference": max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs),
    }


def main() -> None:
    made = parser(__doc__, grid=64, batch=1, repeats=9, ranks="3,32", device="cpu")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    first = torch.zeros(options.batch, 1, dtype=torch.int64, device=options.device)
    routed = torch.arange(options.batch, device=options.device)[:, None] % len(SCALES)
    results = {
        f"rank {rank}": {
            **{f"scale {s}": measure(rank, (s,), first, options) for s in SCALES},
            "routed": measure(rank, SCALES, routed.flip(0), options),
            "all": measure(rank, SCALES, first, options, mixed=True),
        }
        for rank in map(int, options.ranks.split(","))
    }
    report("experts", {"options": vars(options), **results})


if __name__ == "__main__":
    main()
