"""The memory that `--dry-run` foretells against the peak of the real run, in processes of their own.

    python benchmarks/memory_model.py                # sam-tiny at 256 and 512 px, a random ViT-B at 512 px
    python benchmarks/memory_model.py --all          # also ViT-B at 1024 px: some minutes, 5 GB
    python benchmarks/memory_model.py --all --method conv-lora

Each case trains two steps on two generated images through `convlora train` and takes the largest resident set
size of that process. Cases in bf16 are left out where the processor has no arithmetic for it.
Prints JSON: estimate and peak of every case in MiB, their ratio, and the worst ratio.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common import dtypes

VIT_B = "random:facebook/sam-vit-base"
OFFICIAL = "conv-lora:routing=balance"  # without options it is the default preset's router
CASES = [  # backbone, size, method, precision, micro-batch
    ("sam-tiny", 256, OFFICIAL, "fp32", 4),
    ("sam-tiny", 256, "full", "bf16", 8),
    ("sam-tiny", 512, OFFICIAL, "fp32", 1),
    ("sam-tiny", 512, OFFICIAL, "bf16", 4),
    ("sam-tiny", 512, "decoder-only", "bf16", 4),
    ("sam-tiny", 512, "full", "fp32", 4),
    ("sam-tiny", 1024, "lora", "bf16", 1),
    (VIT_B, 512, OFFICIAL, "fp32", 1),
    (VIT_B, 512, OFFICIAL, "bf16", 4),
    (VIT_B, 512, "lora", "bf16", 1),
    (VIT_B, 512, "decoder-only", "fp32", 1),
    (VIT_B, 512, "full", "fp32", 1),
    ("sam-tiny", 256, "conv-lora", "fp32", 4),
    ("sam-tiny", 512, "conv-lora", "fp32", 1),
    (VIT_B, 512, "conv-lora", "fp32", 1),
    (VIT_B, 512, "conv-lora", "bf16", 4),
]
LARGE = [
    (VIT_B, 1024, "conv-lora", "fp32", 1),
    (VIT_B, 1024, OFFICIAL, "bf16", 1),
    (VIT_B, 1024, OFFICIAL, "fp32", 1),
    (VIT_B, 1024, "lora", "fp32", 1),
    (VIT_B, 1024, "lora", "bf16", 2),
    (VIT_B, 1024, "decoder-only", "bf16", 1),
    (VIT_B, 1024, "full", "bf16", 1),
]
CODE = """
import json, resource, sys
from convlora.config import make_config
values = json.loads(sys.argv[1])
if sys.argv[2] == "estimate":
    from convlora.training.dry_run import dry_run
    print(dry_run(make_config(values)).memory_mib)
else:
    from convlora.training.fit import fit
    fit(make_config(values))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(peak // (1024 if sys.platform == "linux" else 2**20))
"""


def write_data(folder: Path, images: int) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", images), ("val", 1)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for i in range(count):
            picture = rng.integers(0, 255, (256, 256, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / split / "images" / f"{split}{i}.png")
            mask = (picture[..., 0] > 128).astype(np.uint8)
            Image.fromarray(mask).save(folder / split / "masks" / f"{split}{i}.png")


def run(values: dict[str, object], what: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(values), what],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )
    return int(done.stdout.splitlines()[-1])


def method_of(label: str) -> dict[str, str]:
    """As `compare` writes methods: a name, then options behind colons."""
    name, *options = label.split(":")
    return {"name": name, **dict(option.split("=") for option in options)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="also ViT-B at 1024 px")
    parser.add_argument("--method", help="only the cases of this one, such as conv-lora:routing=balance")
    options = parser.parse_args()
    precisions, left_out = dtypes("fp32,bf16")
    cases = [case for case in CASES + LARGE * options.all if case[3] in precisions]
    cases = [case for case in cases if options.method in (None, case[2])]
    rows = []
    for backbone, size, method, precision, micro_batch in cases:
        with tempfile.TemporaryDirectory() as name:
            write_data(Path(name) / "data", micro_batch)
            values = {
                "data": f"{name}/data",
                "out": f"{name}/run",
                "backbone": backbone,
                "method": method_of(method),
                "image_size": size,
                "precision": precision,
                "batch_size": micro_batch,
                "micro_batch": micro_batch,
                "max_steps": 2,
                "eval_every": 2,
                "previews": 0,
            }
            estimate, peak = run(values, "estimate"), run(values, "train")
        case = f"{backbone} {size} px {method} {precision} x{micro_batch}"
        rows.append({"case": case, "estimate": estimate, "peak": peak, "ratio": round(estimate / peak, 3)})
        print(rows[-1], file=sys.stderr, flush=True)
    ratios = [row["ratio"] for row in rows]
    report = {
        "benchmark": "memory of a training step, MiB, estimate against peak resident set size",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, CPU",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "cases": rows,
        **left_out,
        "lowest ratio": min(ratios),
        "highest ratio": max(ratios),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
