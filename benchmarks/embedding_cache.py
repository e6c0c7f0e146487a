"""Decoder-only training with and without kept embeddings: seconds of each epoch, the same weights.

    python benchmarks/embedding_cache.py                                          # ViT-B, 1024 px
    python benchmarks/embedding_cache.py --backbone sam-tiny --image-size 256

Both runs train the mask decoder of a frozen SAM with random weights (of sam-tiny: the bundled ones) on
generated pictures, one image a step. The kept run begins with an empty folder; its first epoch holds the
computing of the embeddings. An epoch is its steps and their data; validation comes once, after the last,
and is told beside it.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from common import parser, random_transformers_sam, report
from convlora.config import make_config
from convlora.training import fit as fit_module
from convlora.training.fit import fit
from convlora.training.loop import Loop


def write_pictures(folder: Path, images: int, size: int) -> Path:
    """Discs on noise: `images` to train on, one to validate on."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    for split, count in (("train", images), ("val", 1)):
        for i in range(count):
            centre, radius = rng.integers(size // 4, 3 * size // 4, 2), size // 6
            disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
            picture = rng.integers(60, 120, (size, size, 3))
            picture[disc] = (220, 60, 60)
            for kind, array in (("images", picture), ("masks", disc)):
                (folder / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(folder / split / kind / f"{i}.png")
    return folder


def measure(values: dict[str, Any], images: int, keep: bool) -> dict[str, Any]:
    """Train once; seconds of each epoch, and of the validation after the last."""
    times: dict[str, list[float]] = {"prepare": [], "epoch": [], "validation": []}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["CONVLORA_CACHE"] = cache
        timed(fit_module, "prepare_embeddings", times["prepare"])
        timed(Loop, "_step", times["epoch"])
        timed(fit_module.Validation, "_scores", times["validation"])
        with contextlib.redirect_stdout(sys.stderr):  # JSON alone goes to standard output
            fit(make_config({**values, "keep_embeddings": keep}))
        size = sum(file.stat().st_size for file in Path(cache).rglob("*.safetensors"))
    steps, prepared = times["epoch"], sum(times["prepare"])
    epochs = [sum(steps[i : i + images]) for i in range(0, len(steps), images)]
    epochs[0] += prepared
    return {
        "epoch_seconds": [round(seconds, 3) for seconds in epochs],
        "of_the_first_computing_embeddings": round(prepared, 3),
        "step_seconds_after_the_first_epoch": [round(seconds, 4) for seconds in steps[images:]],
        "validation_seconds": round(times["validation"][-1], 3),
        "embeddings_mb": round(size / 10**6, 2),
    }


def timed(owner: Any, name: str, times: list[float]) -> None:  # noqa: ANN401  # a class or a module
    """Wrap a function so that the seconds of its calls are noted."""
    real = getattr(owner, name)
    real = getattr(real, "unwrapped", real)

    def run(*arguments: Any) -> Any:  # noqa: ANN401
        start = time.perf_counter()
        result = real(*arguments)
        times.append(time.perf_counter() - start)
        return result

    run.unwrapped = real
    setattr(owner, name, run)


def main() -> None:
    options = parser(__doc__, backbone="facebook/sam-vit-base", image_size=1024, images=4, epochs=3)
    options.add_argument("--precision", default="auto")
    options.add_argument("--augment", default="flip")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backbone = args.backbone
        if backbone != "sam-tiny":
            random_transformers_sam(backbone, args.image_size, folder / "sam")
            backbone = str(folder / "sam")
        values = {
            "data": write_pictures(folder / "data", args.images, args.image_size),
            "backbone": backbone,
            "method": "decoder-only",
            "augment": args.augment,
            "image_size": args.image_size,
            "precision": args.precision,
            "batch_size": 1,
            "max_steps": args.images * args.epochs,
            "eval_every": args.images * args.epochs,
            "previews": 0,
        }
        sides = {
            side: measure({**values, "out": folder / side}, args.images, side == "kept")
            for side in ("kept", "not kept")
        }
        weights = [load_file(folder / side / "last" / "adapter_model.safetensors") for side in sides]
        losses = [
            [
                json.loads(line).get("loss")
                for line in (folder / side / "metrics.jsonl").read_text().splitlines()
            ]
            for side in sides
        ]
    first, *later = sides["kept"]["epoch_seconds"]
    without = sides["not kept"]["epoch_seconds"]
    later_mean = sum(later) / len(later)
    report(
        "embedding_cache",
        {
            "settings": {key: str(values[key]) for key in ("method", "augment", "image_size", "precision")}
            | {"backbone": args.backbone, "images": args.images, "epochs": args.epochs},
            **sides,
            "first_epoch_over_later": round(first / later_mean, 1),
            "not_kept_over_kept_later": round(sum(without[1:]) / len(later) / later_mean, 1),
            "same_weights": all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0]),
            "same_losses": losses[0] == losses[1],
        },
    )


if __name__ == "__main__":
    main()
