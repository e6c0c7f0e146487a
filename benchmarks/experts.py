"""Time of one Conv-LoRA expert, forward and backward: ours against interpolate, convolve, interpolate.

Prints JSON; times are medians (and minima) in milliseconds. Close other programs: a busy core distorts them.

    python benchmarks/experts.py [--grid 64] [--batch 1] [--repeats 9] [--threads 2] [--device cpu]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from convlora.adapters.experts import MultiScaleExperts


def slow_expert(experts: MultiScaleExperts, z: Tensor) -> Tensor:
    """Expert 0 as the formula reads; (B, H, W, r) to the same."""
    coarse, scale = z.permute(0, 3, 1, 2), experts.scales[0]
    fine = F.interpolate(coarse, scale_factor=scale, mode="bicubic") if scale > 1 else coarse
    fine = F.gelu(F.conv2d(fine, experts.weight[0], experts.bias[0], padding=1))
    out = F.interpolate(fine, size=coarse.shape[-2:], mode="bicubic") if scale > 1 else fine
    return out.permute(0, 2, 3, 1)


def time_ms(run: Callable[[], Tensor], repeats: int, device: torch.device) -> tuple[float, float]:
    """Median and minimum time of `run` and its backward, after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run().sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(times[1:]), 3), round(1e3 * min(times[1:]), 3)


def measure(rank: int, scales: tuple[int, ...], arguments: argparse.Namespace) -> dict[str, float]:
    """Both forms on the same input and weights; `scales` beyond the first are there to be routed past."""
    device = torch.device(arguments.device)
    experts = MultiScaleExperts(rank, scales, device)
    z = torch.randn(arguments.batch, arguments.grid, arguments.grid, rank, device=device, requires_grad=True)
    gates = torch.ones(arguments.batch, 1, device=device)
    indices = torch.zeros(arguments.batch, 1, dtype=torch.int64, device=device)
    ours, ours_min = time_ms(lambda: experts(z, gates, indices), arguments.repeats, device)
    slow, slow_min = time_ms(lambda: slow_expert(experts, z), arguments.repeats, device)
    difference = (experts(z, gates, indices) - slow_expert(experts, z)).abs().max().item()
    return {
        "ours_ms": ours,
        "slow_ms": slow,
        "speedup": round(slow / ours, 1),
        "ours_min_ms": ours_min,
        "slow_min_ms": slow_min,
        "max_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("grid", 64), ("batch", 1), ("repeats", 9), ("threads", torch.get_num_threads())):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    results = {
        f"rank {rank}": {
            **{f"scale {s}": measure(rank, (s,), arguments) for s in range(1, 9)},
            "scale 8 routed among 1 to 8": measure(rank, (8, 1, 2, 3, 4, 5, 6, 7), arguments),
        }
        for rank in (3, 32)
    }
    machine = {"processor": platform.processor() or platform.machine(), "system": platform.platform()}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    print(
        json.dumps(
            {**vars(arguments), "machine": machine, "versions": versions, "results": results}, indent=2
        )
    )


if __name__ == "__main__":
    main()
