"""Prediction of a folder, its steps overlapped and one after the other, and the model alone.

Writes JPEGs of smooth noise with grain and predicts them with an untrained adapter of sam-tiny: sides in
turn, in one process. `model alone` computes on pixels that are read already; `read and write alone` does all
but that. No order of the steps can be faster than the longer of these two (`floor`); with few cores not even
that is reached, because model and files share them. Prints JSON: seconds for the folder, and ratios.

    python benchmarks/predict_folder.py [--count 12] [--width 3000] [--height 2000] [--repeats 3]
        [--precision fp32] [--threads N]
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from common import in_turn, parser, ratio, report, summary
from convlora.inference import files
from convlora.inference.jobs import Job, plan_jobs
from convlora.inference.pipeline import one_by_one, overlapped
from convlora.inference.predictor import Predictor
from convlora.model import Segmenter


def write_photographs(folder: Path, count: int, width: int, height: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    grain = rng.integers(-8, 9, (height, width, 3), np.int16)
    for i in range(count):
        coarse = rng.integers(0, 256, (height // 40, width // 40, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        pixels = (np.asarray(smooth) + np.roll(grain, i, axis=0)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.jpg", quality=90)


def predict_with(steps: Callable[..., None], predictor: Predictor, jobs: list[Job]) -> None:
    with mock.patch.object(files, "overlapped", steps):
        outcome = files.run_jobs(predictor, jobs)
    assert outcome.written == len(jobs), outcome


def sides(predictor: Predictor, folder: Path, out: Path, overlay: bool) -> dict[str, Callable[[], None]]:
    jobs = plan_jobs([folder], out, overlay=overlay, existing="overwrite")
    pixels = files.read_pixels(jobs[0].image)
    ids = predictor.predict(pixels).ids
    result = files._Result(ids, files.draw(pixels, ids, (1,)) if overlay else None, None)

    def model_alone() -> None:
        for _ in jobs:
            predictor.predict(pixels)

    def files_alone() -> None:
        for job in jobs:
            files._read(job)
            files._write(job, result)

    return {
        "overlapped": partial(predict_with, overlapped, predictor, jobs),
        "one after the other": partial(predict_with, one_by_one, predictor, jobs),
        "model alone": model_alone,
        "read and write alone": files_alone,
    }


def measure(
    predictor: Predictor, arguments: argparse.Namespace, root: Path, overlay: bool
) -> dict[str, object]:
    found = sides(predictor, root / "in", root / f"out-{overlay}", overlay)
    times = in_turn(found, arguments.repeats, warm_up=0)  # the model has run, and files have no warm-up
    alone = times["model alone"], times["read and write alone"]
    floor = [max(pair) for pair in zip(*alone, strict=True)]
    return {
        "seconds": summary(times),
        "floor_seconds": round(statistics.median(floor), 3),
        "one_after_the_other_over_overlapped": ratio(times["one after the other"], times["overlapped"]),
        "overlapped_over_floor": ratio(times["overlapped"], floor),
        "overlapped_over_model_alone": ratio(times["overlapped"], times["model alone"]),
    }


def main() -> None:
    arguments = parser(__doc__, count=12, width=3000, height=2000, repeats=3, precision="fp32").parse_args()
    torch.set_num_threads(arguments.threads)
    model = Segmenter.from_backbone("sam-tiny", ("background", "foreground"))
    predictor = Predictor(model, "cpu", arguments.precision)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        write_photographs(root / "in", arguments.count, arguments.width, arguments.height)
        result = {
            "masks": measure(predictor, arguments, root, overlay=False),
            "masks and overlays": measure(predictor, arguments, root, overlay=True),
        }
    report("predict_folder", {**vars(arguments), **result}, "numpy", "pillow")


if __name__ == "__main__":
    main()
