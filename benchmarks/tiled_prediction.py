"""Memory and time of the prediction of one large image in tiles.

Makes a square image, then, in a process of its own, loads an untrained adapter of sam-tiny, predicts one
small picture, notes the resident memory, and does what `convlora predict --tile` does. Prints JSON:
`peak_above_model_mib` is the peak of that process less what it had before.

    python benchmarks/tiled_prediction.py [--size 10000] [--tile 1024] [--classes 2] [--format jpg]
        [--overlay 0] [--probabilities 0] [--threads N]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from common import parser, report
from convlora.checkpoint import from_pretrained, save_pretrained
from convlora.inference.files import predict_files
from convlora.inference.predictor import Predictor
from convlora.inference.tiles import choose_tiles, plan_tiles
from convlora.model import Segmenter

MIB = 2**20


def write_image(file: Path, size: int) -> None:
    """Smooth noise; the file is written in this process, which is not the one that is measured."""
    coarse = np.random.default_rng(0).integers(0, 256, (max(2, size // 50), max(2, size // 50), 3), np.uint8)
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BILINEAR).save(file)


def peak_bytes() -> int:
    """Largest resident memory of this program; getrusage alone would count what started it, up to exec."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 2**10  # getrusage counts bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return next(int(line.split()[1]) * 2**10 for line in lines if line.startswith("VmHWM"))


def predict(arguments: argparse.Namespace) -> None:
    """The process that is measured; prints its numbers."""
    torch.set_num_threads(arguments.threads)
    root = Path(arguments.place)
    predictor = Predictor(from_pretrained(root / "model"), "cpu", arguments.precision, tile=arguments.tile)
    side = min(arguments.tile, 64)
    predictor.predict(np.zeros((side, side, 3), np.uint8))
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    outcome = predict_files(
        predictor,
        [next(root.glob("image.*"))],
        root / "out",
        overlay=bool(arguments.overlay),
        probabilities=bool(arguments.probabilities),
    )
    seconds = time.perf_counter() - start
    assert outcome.written == 1, outcome
    peak = peak_bytes()
    found = {
        "resident_with_model_mib": round(before / MIB, 1),
        "peak_mib": round(peak / MIB, 1),
        "peak_above_model_mib": round((peak - before) / MIB, 1),
        "seconds": round(seconds, 2),
    }
    print(json.dumps(found))


def main() -> None:
    options = {"size": 10_000, "tile": 1024, "classes": 2, "format": "jpg", "overlay": 0, "probabilities": 0}
    made = parser(__doc__, **options, precision="fp32")
    made.add_argument("--place", default="", help=argparse.SUPPRESS)
    arguments = made.parse_args()
    if arguments.place:
        predict(arguments)
        return
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        names = ("background", *(f"class{i}" for i in range(1, arguments.classes)))
        save_pretrained(Segmenter.from_backbone("sam-tiny", names), root / "model")
        Image.MAX_IMAGE_PIXELS = None
        write_image(root / f"image.{arguments.format}", arguments.size)
        command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--place", place]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    tiles = choose_tiles(arguments.tile)
    assert tiles is not None
    result = {k: v for k, v in vars(arguments).items() if k != "place"}
    count = len(plan_tiles((arguments.size, arguments.size), tiles))
    report("tiled_prediction", {**result, "tiles": count, **json.loads(done.stdout)}, "numpy", "pillow")


if __name__ == "__main__":
    main()
