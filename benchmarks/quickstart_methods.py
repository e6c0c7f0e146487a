"""The quickstart's task with every method, same data and budget. Prints JSON; progress goes to stderr.

python benchmarks/quickstart_methods.py [--steps 240] [--seeds 2] [--methods conv-lora,lora,...]
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
from convlora.adapters import methods
from convlora.data.sample import write_brain_sample


def run_one(folder: Path, data: Path, method: str, steps: int, seed: int) -> dict[str, Any]:
    out = folder / f"{method}-{seed}"
    start = time.monotonic()
    convlora.train(data, out, method={"name": method}, max_steps=steps, seed=seed, previews=0)
    seconds = time.monotonic() - start
    best, last = convlora.evaluate(out / "best", data), convlora.evaluate(out / "last", data)
    key = "mean_dice_foreground"
    return {"seed": seed, "best": best[key], "last": last[key], "train_seconds": round(seconds, 1)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--methods", default=",".join(methods()))
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        folder = Path(name)
        write_brain_sample(folder / "data")
        for method in options.methods.split(","):
            runs = [
                run_one(folder, folder / "data", method, options.steps, seed) for seed in range(options.seeds)
            ]
            means = {key: statistics.mean(run[key] for run in runs) for key in ("best", "last")}
            rows.append({"method": method, "mean_dice_foreground": means, "runs": runs})
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    versions = {"torch": torch.__version__, "convlora": convlora.__version__}
    print(
        json.dumps({"steps": options.steps, "machine": machine, "versions": versions, "rows": rows}, indent=2)
    )


if __name__ == "__main__":
    main()
