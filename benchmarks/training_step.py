"""One training step (forward, backward, optimiser) of a SAM at 1024 px, batch 1: time and peak memory.

    python benchmarks/training_step.py                     # ViT-B, bf16 and fp32: about 20 minutes
    python benchmarks/training_step.py --image-size 512 --repeats 3
    python benchmarks/training_step.py --sides "lora,conv-lora" --dtype bf16
    python benchmarks/training_step.py --sides "official,conv-lora in bf16" --dtype fp32

Sides: convlora's methods, as `convlora train` runs them (autocast in bf16; "in bf16": in an fp32 run too);
`peft`: transformers' SamModel with sdpa, peft's LoRA of rank 3 on qkv, mask decoder trained, frozen weights
held in bf16 where the step is;
`official`: SamModel with eager attention in fp32 and Conv-LoRA layers written as the official code computes
them (each expert interpolates, convolves and interpolates back the windows that chose it). The same loss
everywhere: binary cross-entropy and Dice on the low-resolution logits.
bf16 is left out where the processor has no arithmetic for it; `--dtype auto` takes what the commands would.
Times: in turn in one process. Peak memory: largest resident set of a process that does two steps of one side;
processes of the same side differ by up to 7 % (how the heap is cut up), so each side has several, in turn.
`--repeats 0` leaves the times out, `--memory-repeats 0` the memory.
Prints JSON.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamModel

from common import DTYPES, dtypes, in_turn, parser, random_transformers_sam, randomise, ratio, report, summary
from convlora.adapters import build_method
from convlora.backbone.weights import load_sam
from convlora.frozen import hold_frozen_in
from convlora.model import Segmenter
from convlora.presets import LEARNED_ROUTER
from official import OfficialConvLoRA

LEARNS = " that learns"  # with the default preset's router
LEARNED, WIDE = "conv-lora" + LEARNS, "conv-lora rank 32" + LEARNS
OURS = (
    "lora",
    "conv-lora",
    LEARNED,
    "lora rank 32",
    "conv-lora rank 32",
    WIDE,
    "conv-lora-multiscale",
    "decoder-only",
)
THEIRS = ("peft", "official")
PAIRS = (
    ("peft", "lora"),
    ("peft", "conv-lora"),
    ("official", "conv-lora"),
    ("official", "conv-lora in bf16"),
    ("conv-lora", "lora"),
    (LEARNED, "lora"),
    ("conv-lora rank 32", "lora rank 32"),
    (WIDE, "lora rank 32"),
    ("conv-lora-multiscale", "lora"),
)


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    logits = logits.float()
    p = logits.sigmoid()
    dice = 1 - (2 * (p * target).sum() + 1) / (p.sum() + target.sum() + 1)
    return F.binary_cross_entropy_with_logits(logits, target) + dice


def ours(
    side: str, folder: str, size: int, dtype: torch.dtype
) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Model and its logits of an image; as in `convlora train`."""
    name, _, rank = side.removesuffix(LEARNS).partition(" rank ")
    options = dict(LEARNED_ROUTER) if side.endswith(LEARNS) else {}
    method = build_method(name, options | ({"rank": int(rank)} if rank else {}))
    model = Segmenter.from_backbone(load_sam(folder), ["background", "foreground"], method, image_size=size)
    hold_frozen_in(model, None if dtype == torch.float32 else dtype)

    def logits(image: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return model(image).mask_logits[:, 0]

    return model, logits


def theirs(side: str, folder: str, dtype: torch.dtype) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """SamModel with peft's LoRA, or with the official Conv-LoRA layer, on qkv; mask decoder trained."""
    attention = "sdpa" if side == "peft" else "eager"
    model = SamModel.from_pretrained(folder, attn_implementation=attention).requires_grad_(False)
    if side == "peft":
        inject_adapter_in_model(LoraConfig(r=3, lora_alpha=32, target_modules=["qkv"]), model.vision_encoder)
    else:
        for layer in model.vision_encoder.layers:
            layer.attn.qkv = OfficialConvLoRA(layer.attn.qkv)
    model.mask_decoder.requires_grad_(True)
    model.mask_decoder.iou_prediction_head.requires_grad_(False)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)

    def logits(image: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return model(image.to(dtype), multimask_output=False).pred_masks[:, 0, 0]

    return model, logits


def make_step(side: str, folder: str, size: int, dtype: torch.dtype) -> Callable[[], float]:
    """A whole step of a side on one fixed image."""
    side, own = side.removesuffix(" in bf16"), side.endswith(" in bf16")
    dtype = torch.bfloat16 if own else dtype
    model, logits = theirs(side, folder, dtype) if side in THEIRS else ours(side, folder, size, dtype)
    randomise(model)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    target = (image[:, 0, ::4, ::4] > 0).float()

    def step() -> float:
        loss = loss_of(logits(image), target)
        side_losses = [m.aux_loss for m in model.modules() if getattr(m, "aux_loss", None) is not None]
        loss = loss + 0.01 * sum(side_losses) if side in THEIRS else loss + sum(side_losses)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def peak_memory(side: str, options: argparse.Namespace, dtype: str, folder: str) -> dict[str, float]:
    """MiB of a process of its own: the largest resident set, and what of it the steps added."""
    code = "import json, sys, training_step as t; print(json.dumps(t.two_steps(*sys.argv[1:])))"
    arguments = [side, folder, str(options.image_size), dtype, str(options.threads)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def two_steps(side: str, folder: str, size: str, dtype: str, threads: str) -> dict[str, int]:
    """What `peak_memory` runs."""
    torch.set_num_threads(int(threads))
    step = make_step(side, folder, int(size), DTYPES[dtype])
    before = _resident()
    for _ in range(2):
        step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"peak": peak, "above the model": peak - before}


def _resident() -> int:
    return psutil.Process().memory_info().rss // 2**20


def measure(sides: list[str], options: argparse.Namespace, dtype: str, folder: str) -> dict[str, Any]:
    """Memory and times of each side, as far as they are asked for."""
    peaks = peaks_in_turn(sides, options, dtype, folder)
    found: dict[str, Any] = {}
    if peaks:
        names = ("peak", "above the model")
        found["memory in MiB"] = {name: summary({s: peaks[s][name] for s in sides}, 0) for name in names}
    times: dict[str, list[float]] = {}
    if options.repeats:
        steps = {side: make_step(side, folder, options.image_size, DTYPES[dtype]) for side in sides}
        times = in_turn(steps, options.repeats)
        found["seconds"] = summary(times)
    return found | {"ratios": ratios(sides, times, peaks)}


def peaks_in_turn(
    sides: list[str], options: argparse.Namespace, dtype: str, folder: str
) -> dict[str, dict[str, list[float]]]:
    """`peak_memory` of each side, several times."""
    peaks: dict[str, dict[str, list[float]]] = {}
    for _ in range(options.memory_repeats):
        for side in sides:
            for name, value in peak_memory(side, options, dtype, folder).items():
                peaks.setdefault(side, {}).setdefault(name, []).append(value)
    return peaks


def ratios(
    sides: list[str], times: dict[str, list[float]], peaks: dict[str, dict[str, list[float]]]
) -> dict[str, Any]:
    """Each pair that the docs speak of, where both sides ran: time, and the medians of peak memory."""
    found: dict[str, Any] = {}
    for first, second in PAIRS:
        if first in sides and second in sides:
            pair = found[f"{first} / {second}"] = {}
            if times:
                pair["time"] = ratio(times[first], times[second])
            if peaks:
                medians = [statistics.median(peaks[side]["peak"]) for side in (first, second)]
                pair["peak memory"] = round(medians[0] / medians[1], 3)
    return found


def runs(side: str, dtype: str) -> bool:
    """Whether a side has a run in this precision, here."""
    if side == "conv-lora in bf16":
        return dtype == "fp32" and "bf16" in dtypes("bf16")[0]
    return side != "official" or dtype == "fp32"


def main() -> None:
    made = parser(__doc__, backbone="facebook/sam-vit-base", image_size=1024, repeats=3, dtype="bf16,fp32")
    made.add_argument("--memory-repeats", type=int, default=3)
    made.add_argument("--sides", default=",".join((*OURS, "conv-lora in bf16", *THEIRS)))
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    sides = options.sides.split(",")
    with tempfile.TemporaryDirectory() as folder:
        random_transformers_sam(options.backbone, options.image_size, Path(folder))
        chosen, left_out = dtypes(options.dtype)
        result = {}
        for dtype in chosen:
            run = [side for side in sides if runs(side, dtype)]
            result[dtype] = measure(run, options, dtype, folder)
    report("training step", {"options": vars(options), **result, **left_out}, "transformers", "peft")


if __name__ == "__main__":
    main()
