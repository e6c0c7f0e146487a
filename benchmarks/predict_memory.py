"""Memory of prediction with 100 and with 2,000 files: it must not grow with their number.

Runs `convlora predict` on small pictures with a random adapter of sam-tiny, few and many files in turn, each
in a process of its own. Prints JSON; numbers are the largest resident memory of each process in MiB.

    python benchmarks/predict_memory.py [--few 100] [--many 2000] [--repeats 3] [--side 32]
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from convlora.checkpoint import save_pretrained
from convlora.model import Segmenter


def write_pictures(folder: Path, count: int, side: int) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(folder / f"{i:05d}.png")


def predict_alone(model: Path, inputs: Path, out: Path) -> float:
    """Largest resident memory, in MiB, of a process that predicts the folder."""
    code = (
        "import resource, sys\n"
        "from convlora.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "predict", str(model), str(inputs), "--out", str(out)]
    done = subprocess.run(
        [*command, "--device", "cpu", "--precision", "fp32"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads that wait for each other on a busy machine
        capture_output=True,
        text=True,
        check=True,
    )
    unit = 2**20 if sys.platform == "darwin" else 2**10  # getrusage counts bytes there, KiB elsewhere
    return round(int(done.stderr.split()[-1]) / unit, 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("few", 100), ("many", 2000), ("repeats", 3), ("side", 32), ("image-size", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    counts = {"few": arguments.few, "many": arguments.many}
    results: dict[str, list[float]] = {kind: [] for kind in counts}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        model = Segmenter.from_backbone(
            "sam-tiny", ("background", "foreground"), image_size=arguments.image_size
        )
        save_pretrained(model, root / "model")
        for kind, count in counts.items():
            write_pictures(root / kind, count, arguments.side)
        for repeat in range(arguments.repeats):
            for kind in counts:
                results[kind].append(predict_alone(root / "model", root / kind, root / f"{kind}-{repeat}"))
    medians = {kind: statistics.median(values) for kind, values in results.items()}
    machine = {"processor": platform.processor() or platform.machine(), "system": platform.platform()}
    report = {
        **vars(arguments),
        "machine": machine,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "peak_mib": results,
        "median_mib": medians,
        "kib_per_file": round(
            1024 * (medians["many"] - medians["few"]) / (arguments.many - arguments.few), 2
        ),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
