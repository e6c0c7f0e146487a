"""What the benchmark scripts share: the record of machine and versions, and timing of sides in turn."""

import argparse
import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convlora.backbone.presets import BACKBONES
from convlora.inference.device import autocast_dtype, slowness

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def environment(*packages: str) -> dict[str, Any]:
    """Machine and versions; `packages` beside python, torch and convlora."""
    return {
        "machine": {
            "processor": _processor(),
            "system": platform.platform(),
            "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "precision of auto": "fp32" if autocast_dtype("auto", torch.device("cpu")) is None else "bf16",
        },
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "convlora", *packages)},
        },
    }


def _processor() -> str:
    """Name of the processor; its flags say whether it multiplies bfloat16 matrices (AMX)."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line), "?")
    return f"{name}, {'AMX' if 'amx_bf16' in text else 'no AMX'}"


def dtypes(text: str) -> tuple[dict[str, torch.dtype], dict[str, str]]:
    """Precisions to run, by name, and those that are left out as they would take hours here, with the reason.

    Args:
        text: fp32, bf16 or auto (bf16 where the processor has arithmetic for it), separated by commas.
    """
    auto = environment()["machine"]["precision of auto"]
    named = {name: DTYPES[name] for name in dict.fromkeys(text.replace("auto", auto).split(","))}
    reasons = {name: slowness(dtype, torch.device("cpu")) for name, dtype in named.items() if name != "fp32"}
    left_out = {name: f"left out: {reason}" for name, reason in reasons.items() if reason}
    return {name: dtype for name, dtype in named.items() if name not in left_out}, left_out


def seconds(run: Callable[[], object]) -> float:
    """Wall clock of one call, the device's work included."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(
    sides: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Seconds of every side, one after the other, `repeats` times: what disturbs one disturbs all."""
    for _ in range(warm_up):
        for run in sides.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, run in sides.items():
            times[name].append(seconds(run))
    return times


def summary(times: Mapping[str, list[float]], digits: int = 3) -> dict[str, dict[str, float]]:
    """Median, least and greatest seconds of each side."""
    return {
        name: {
            "median": round(statistics.median(t), digits),
            "min": round(min(t), digits),
            "max": round(max(t), digits),
        }
        for name, t in times.items()
    }


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """How many times slower: the median over the pairs of runs that stood side by side, and their spread."""
    pairs = [s / f for s, f in zip(slow, fast, strict=True)]
    return {
        "median": round(statistics.median(pairs), 3),
        "min": round(min(pairs), 3),
        "max": round(max(pairs), 3),
    }


def parser(doc: str | None, **defaults: int | str | float) -> argparse.ArgumentParser:
    """Command line with one option for each default, and --threads."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {**defaults, "threads": torch.get_num_threads()}.items():
        made.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return made


def randomise(module: nn.Module, seed: int = 0, std: float = 0.02) -> None:
    """Small random numbers for what starts at zero (relative positions, updates), so that nothing is idle."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def random_transformers_sam(backbone: str, image_size: int, folder: Path) -> None:
    """Write a SamModel with random weights, none of them zero, as a folder that both sides load."""
    from transformers import SamConfig, SamModel

    encoder = BACKBONES[backbone].encoder
    vision = {
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "global_attn_indexes": list(encoder.global_attn_indexes),
        "mlp_dim": encoder.hidden_mlp_dim,
        "image_size": image_size,
        "initializer_range": 0.02,  # the default, 1e-10, leaves an encoder that does nothing
    }
    prompt = {"image_size": image_size, "image_embedding_size": image_size // encoder.patch_size}
    model = SamModel(SamConfig(vision_config=vision, prompt_encoder_config=prompt))
    randomise(model)
    model.save_pretrained(folder)


def report(benchmark: str, result: Mapping[str, Any], *packages: str) -> None:
    """Print the JSON of a script."""
    print(json.dumps({"benchmark": benchmark, **environment(*packages), **result}, indent=2))
