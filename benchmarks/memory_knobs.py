"""Peak memory and time of one training step at 1024 px with each of the knobs that save memory.

    python benchmarks/memory_knobs.py                                    # ViT-B, -L and -H: about six minutes
    python benchmarks/memory_knobs.py --backbones facebook/sam-vit-base --dtype fp32

Conv-LoRA (--method) on random weights; every row is a process of its own that takes one step, of two images
where the row says so. Peak: largest resident set, interpreter and libraries included (about 0.5 GiB).
Knobs: activation checkpointing, micro-batch, image size. Prints JSON.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from common import environment, parser, randomise, report, seconds
from convlora.adapters import build_method
from convlora.backbone.presets import BACKBONES
from convlora.backbone.sam import Sam
from convlora.frozen import hold_frozen_in
from convlora.model import Segmenter, SegmenterConfig

ALL = "facebook/sam-vit-base,facebook/sam-vit-large,facebook/sam-vit-huge"
#: image size, images a step, images at once, checkpointing
ROWS = ((1024, 1, 1, False), (1024, 1, 1, True), (512, 1, 1, False), (1024, 2, 2, False), (1024, 2, 1, False))


def one_step(
    backbone: str, method: str, dtype: str, size: str, images: str, micro: str, checkpointing: str
) -> dict[str, float]:
    """What a process of its own runs: MiB at its peak and seconds of the step."""
    torch.manual_seed(0)
    spec = BACKBONES[backbone]
    config = SegmenterConfig(backbone, ("background", "foreground"), method, image_size=int(size))
    model = Segmenter(Sam(spec), config).train()
    randomise(model)
    model.encoder.set_recompute(checkpointing == "True")
    half = None if dtype == "fp32" else torch.bfloat16
    hold_frozen_in(model, half)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    pixels = torch.randn(int(images), 3, int(size), int(size))

    def step() -> None:
        for part in pixels.split(int(micro)):
            with torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None):
                logits = model(part).mask_logits
            target = (part[:, :1, ::4, ::4] > 0).float()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.float(), target)
            side = model.auxiliary_loss()
            (loss if side is None else loss + side).backward()
        optimizer.step()

    took = seconds(step)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"peak MiB": peak, "seconds": round(took, 2)}


def in_a_process(*arguments: object) -> dict[str, float]:
    code = "import json, sys, memory_knobs as m; print(json.dumps(m.one_step(*sys.argv[1:])))"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    options = parser(__doc__, backbones=ALL, method="conv-lora", dtype="auto").parse_args()
    auto = environment()["machine"]["precision of auto"]
    dtype = auto if options.dtype == "auto" else options.dtype
    build_method(options.method)
    rows: list[dict[str, Any]] = []
    for backbone in options.backbones.split(","):
        for size, images, micro, checkpointing in ROWS:
            if images > 1 and backbone != "facebook/sam-vit-base":
                continue
            found = in_a_process(backbone, options.method, dtype, size, images, micro, checkpointing)
            what = {"backbone": backbone, "image size": size, "images": images, "micro-batch": micro}
            rows.append({**what, "checkpointing": checkpointing, **found})
    report("memory knobs", {"options": vars(options), "dtype": dtype, "rows": rows})


if __name__ == "__main__":
    main()
