"""Time of `check_dataset` against the decoding of the same files alone, with as many threads.

The floor opens and decodes every image and mask with Pillow and does nothing else. Both sides run in turns,
after one pass that brings the files into the system's cache. Prints JSON; close other programs.

    python benchmarks/check_speed.py [--pairs 1000] [--size 512] [--threads N] [--repeats 3]
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from convlora import __version__
from convlora.data.check import check_dataset
from convlora.data.images import open_image

_KINDS = 50  # different textures; every picture is still another one


def write_pairs(root: Path, count: int, size: int) -> list[Path]:
    """Photograph-like JPEGs and masks of a few ellipses, 90 % for training; returns all files."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.mgrid[:size, :size]).astype(np.float32) / size
    textures = []
    for _ in range(_KINDS):
        coarse = Image.fromarray(rng.integers(0, 255, (size // 16, size // 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.int16)
        textures.append(smooth + rng.normal(0, 6, smooth.shape).astype(np.int16))
    files = []
    for i in range(count):
        folder = root / ("val" if i % 10 == 0 else "train")
        mask = np.zeros((size, size), np.uint8)
        for y, x, radius in rng.uniform(0.1, 0.9, (3, 3)):
            mask[(grid[0] - y) ** 2 + (grid[1] - x) ** 2 < (radius / 5) ** 2] = 1
        picture = np.clip(textures[i % _KINDS] + 40 * mask[..., None] + i // _KINDS % 20, 0, 255)
        for kind, ending, array in (("images", "jpg", picture.astype(np.uint8)), ("masks", "png", mask)):
            path = folder / kind / f"{i:06d}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
            files.append(path)
    return files


def decode_all(files: Sequence[Path], threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(open_image, files):
            pass


def check(root: Path, threads: int, pairs: int) -> None:
    report = check_dataset(root, workers=threads)
    report.raise_if_errors()
    assert sum(report.statistics["images"].values()) == pairs


def seconds(run: Callable[[], None]) -> tuple[float, float]:
    """Wall clock and processor time; the latter tells more where other programs run too."""
    start, used = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - start, time.process_time() - used


def compare(floor: Sequence[float], ours: Sequence[float]) -> dict[str, object]:
    ratios = [b / a for a, b in zip(floor, ours, strict=True)]
    return {
        "decode_seconds": [round(t, 3) for t in floor],
        "check_seconds": [round(t, 3) for t in ours],
        "ratio_of_medians": round(statistics.median(ours) / statistics.median(floor), 3),
        "ratio_spread": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def measure(root: Path, arguments: argparse.Namespace) -> dict[str, object]:
    files = write_pairs(root, arguments.pairs, arguments.size)
    decode_all(files, arguments.threads)
    floor, ours = [], []
    for _ in range(arguments.repeats):
        floor.append(seconds(lambda: decode_all(files, arguments.threads)))
        ours.append(seconds(lambda: check(root, arguments.threads, arguments.pairs)))
        print(f"decoding {floor[-1][0]:.2f} s, check {ours[-1][0]:.2f} s", file=sys.stderr)
    wall, processor = ([[t[i] for t in side] for side in (floor, ours)] for i in (0, 1))
    return {
        "pairs": arguments.pairs,
        "size": arguments.size,
        "threads": arguments.threads,
        "wall_clock": compare(*wall),
        "processor_time": compare(*processor),
        "check_pairs_per_second": round(arguments.pairs / statistics.median(wall[1]), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("pairs", 1000), ("size", 512), ("threads", os.cpu_count()), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "load": os.getloadavg(),
    }
    versions = {
        "convlora": __version__,
        "python": platform.python_version(),
        "pillow": PIL.__version__,
        "numpy": np.__version__,
    }
    print(json.dumps({"machine": machine, "versions": versions, **result}, indent=2))


if __name__ == "__main__":
    main()
