"""Are the bundled backbone's frozen features better than random ones? Prints JSON.

Trains the mask decoder (and, for comparison, adapters) on the same data with the same seeds and budget on
`sam-tiny` and on the same architecture with random weights, and scores the test split.

    python benchmarks/backbone_features.py DATA [--steps 250] [--seeds 3] [--methods decoder-only,conv-lora]
        [--backbones random:sam-tiny,sam-tiny]
"""

import argparse
import contextlib
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import convlora


def run_one(data: Path, backbone: str, method: str, steps: int, seed: int, size: int) -> dict[str, Any]:
    # what the run prints goes to stderr: stdout is for the JSON
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        start = time.monotonic()
        convlora.train(
            data,
            Path(folder) / "run",
            backbone=backbone,
            method={"name": method},
            max_steps=steps,
            batch_size=8,
            image_size=size,
            seed=seed,
            previews=0,
        )
        seconds = time.monotonic() - start
        scores = convlora.evaluate(Path(folder) / "run", data)
    return {
        "seed": seed,
        "image_mean_dice": scores["image_mean_dice_foreground"],
        "mean_dice": scores["mean_dice_foreground"],
        "mean_iou": scores["mean_iou"],
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--methods", default="decoder-only")
    parser.add_argument("--backbones", default="random:sam-tiny,sam-tiny")
    options = parser.parse_args()
    rows = []
    for method in options.methods.split(","):
        for backbone in options.backbones.split(","):
            runs = [
                run_one(options.data, backbone, method, options.steps, seed, options.size)
                for seed in range(options.seeds)
            ]
            dice = [run["image_mean_dice"] for run in runs]
            spread = statistics.stdev(dice) if len(dice) > 1 else None
            rows.append(
                {
                    "method": method,
                    "backbone": backbone,
                    "image_mean_dice": statistics.mean(dice),
                    "deviation": spread,
                    "runs": runs,
                }
            )
    print(
        json.dumps(
            {
                "data": options.data.name,
                "steps": options.steps,
                "batch": 8,
                "image_size": options.size,
                "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
                "versions": {"torch": torch.__version__, "convlora": convlora.__version__},
                "rows": rows,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
