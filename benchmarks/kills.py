"""Kill a training with SIGKILL again and again, resume it, and compare its end with an uninterrupted one's.

Prints JSON; progress goes to stderr. Data, backbone and run are tiny, made here: saving is what is tested.

    python benchmarks/kills.py [--kills 30] [--seed 0] [--steps 60]
"""

import argparse
import json
import multiprocessing
import os
import platform
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import convlora
from convlora.backbone.initialise import random_sam
from convlora.backbone.presets import DecoderSpec, EncoderSpec, SamSpec
from convlora.backbone.weights import save_sam
from convlora.config import make_config
from convlora.training import fit as fit_module
from convlora.training.fit import fit
from convlora.training.loop import Loop
from convlora.training.validation import Validation

#: A life is a fork of this process, so that the imports, which touch no file, are done once.
FORK = multiprocessing.get_context("fork")

#: How often each moment is aimed at, and the longest wait after it begins, in seconds.
MOMENTS = {"startup": (2, 1.0), "step": (3, 0.1), "validation": (2, 0.1), "save": (5, 0.015)}


def train(folder: Path, out: Path, steps: int, resume: bool, pipe: int) -> None:
    """One life of the training, in this process; every moment that begins is written to `pipe`."""
    os.write(pipe, b"startup 0\n")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def announce(owner: object, name: str, moment: str, step: Callable[..., int]) -> None:
        real = getattr(owner, name)

        def announced(*values: Any) -> object:  # noqa: ANN401
            os.write(pipe, f"{moment} {step(*values)}\n".encode())
            return real(*values)

        setattr(owner, name, announced)

    announce(Loop, "_step", "step", lambda loop, batches: loop.done + 1)
    announce(Validation, "_scores", "validation", lambda validation, step: step)
    announce(Validation, "_save", "save", lambda validation, scores, progress, better: progress.step)
    announce(fit_module, "save_state", "save", lambda out, progress, *_: progress.step)
    values = {"max_steps": steps, "eval_every": 4, "image_size": 64, "previews": 1, "micro_batch": 2}
    backbone = str(folder / "backbone")
    fit(make_config({"data": folder / "data", "out": out, "backbone": backbone, **values}), resume)


def prepare(folder: Path) -> None:
    """Write a random small backbone, and discs on noise."""
    encoder = EncoderSpec(32, 2, 2, (1,), image_size=64, patch_size=8, window_size=4, out_channels=32)
    decoder = DecoderSpec(dim=32, mlp_dim=64, num_heads=4, iou_head_hidden_dim=32)
    save_sam(random_sam(SamSpec(encoder, decoder)), folder / "backbone")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for split, count in (("train", 8), ("val", 4)):
        for i in range(count):
            image = rng.integers(60, 120, (64, 64, 3), dtype=np.uint8)
            mask = (y - rng.integers(12, 52)) ** 2 + (x - rng.integers(12, 52)) ** 2 < 100
            image[mask] = (220, 60, 60)
            for kind, array in (("images", image), ("masks", mask.astype(np.uint8))):
                (folder / "data" / split / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / "data" / split / kind / f"{i}.png")


def live(folder: Path, out: Path, steps: int, death: tuple[str, int, float] | None) -> str | None:
    """Start or resume a training, and kill it.

    Args:
        folder: data and backbone.
        out: run folder.
        steps: of the whole run.
        death: moment, how many of that kind to let begin, and the wait after it; None lets it end.

    Returns:
        The moment that it was killed in, such as 'save 12'; None if it ended before.
    """
    reader, writer = os.pipe()
    # as a user does: where there is a config.yaml there is a run to resume
    resume = (out / "config.yaml").exists()
    process = FORK.Process(target=train, args=(folder, out, steps, resume, writer))
    process.start()
    os.close(writer)
    heard, left = "", death[1] if death else 0
    while process.is_alive():
        if not select.select([reader], [], [], 0.05)[0]:
            continue
        new = os.read(reader, 4096).decode()
        heard += new
        if not new:
            break
        left -= sum(line.startswith(death[0]) for line in new.splitlines()) if death else 0
        if death and left <= 0:
            time.sleep(death[2])
            process.kill()
            break
    process.join()
    while rest := os.read(reader, 4096).decode():
        heard += rest
    os.close(reader)
    if process.exitcode not in (0, -signal.SIGKILL):
        raise SystemExit(f"a life of the training failed after {heard!r}; its error is above")
    return heard.splitlines()[-1] if process.exitcode else None


def compare(one: Path, other: Path) -> dict[str, bool]:
    """Whether two runs ended in the same, bit for bit; speed is left out of the rows."""

    def rows(run: Path) -> list[dict[str, Any]]:
        lines = (run / "metrics.jsonl").read_text().splitlines()
        return [
            {k: v for k, v in json.loads(line).items() if k not in {"images_per_second", "seconds"}}
            for line in lines
        ]

    same: dict[str, bool] = {}
    for name in ("best", "last"):
        files = [run / name / "adapter_model.safetensors" for run in (one, other)]
        same[name] = files[0].read_bytes() == files[1].read_bytes()
    same["metrics.jsonl"] = rows(one) == rows(other)
    same["metrics.json"] = (one / "metrics.json").read_bytes() == (other / "metrics.json").read_bytes()
    same["nothing left over"] = sorted(p.name for p in one.iterdir()) == sorted(
        p.name for p in other.iterdir()
    )
    return same


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("kills", 30), ("seed", 0), ("steps", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a fork has none of its parent's threads
    generator = random.Random(options.seed)
    start, kills, runs = time.monotonic(), [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        live(folder, folder / "whole", options.steps, None)
        while len(kills) < options.kills or not runs or not runs[-1]["ended"]:
            if not runs or runs[-1]["ended"]:
                runs.append({"kills": 0, "ended": False})
            out, death = folder / f"run{len(runs)}", None
            if len(kills) < options.kills:
                moment = generator.choices(list(MOMENTS), [weight for weight, _ in MOMENTS.values()])[0]
                most = {"startup": 1, "step": 12, "validation": 3, "save": 6}[moment]
                death = (moment, generator.randint(1, most), generator.random() * MOMENTS[moment][1])
            moment_of_death = live(folder, out, options.steps, death)
            if moment_of_death is None:
                runs[-1] |= {"ended": True, "same": compare(out, folder / "whole")}
            else:
                kills.append({"run": len(runs), "aimed_at": death[0], "hit": moment_of_death})
                runs[-1]["kills"] += 1
            print(f"{len(kills)} kills, run {len(runs)}: {moment_of_death or 'ended'}", file=sys.stderr)
    result = {
        **vars(options),
        "identical": all(all(run["same"].values()) for run in runs),
        "seconds": round(time.monotonic() - start),
        "machine": {"processor": platform.processor() or platform.machine(), "system": platform.platform()},
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "convlora": convlora.__version__,
        },
        "runs": runs,
        "kills_one_by_one": kills,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
