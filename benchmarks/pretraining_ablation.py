"""Which choices of sam-tiny's pretraining matter? Each variant gets the same training time; prints JSON.

    python benchmarks/pretraining_ablation.py DATA --work DIR [--minutes 10] [--jobs 2] [--variants deep]

DATA holds the sets `nuclei` and `cracks`. Every variant is pretrained from random weights, with one thread
and on 4,000 scenes, as `convlora pretrain` does it but for one choice, and judged as the bundled backbone is:
zero-shot IoU (`one_click.py`) and the decoder alone trained on its frozen features (`backbone_features.py`).
What is in DIR is not made again, and a variant that was cut off goes on. "seed 1" tells how far apart two
runs of the same recipe are. The time is the processor's, of one thread, so that variants stay comparable on a
busy machine.

The masked start (SimMIM, Xie et al., CVPR 2022, at our size): for the first quarter of the time the encoder
sees images of which 60 % of the squares of 16 px are blanked, and a linear map of its embedding shall give
the pixels that are missing (mean absolute error).
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from backbone_features import run_one
from common import environment
from convlora.backbone.initialise import random_sam
from convlora.backbone.presets import SAM_TINY, SamSpec
from convlora.backbone.sam import Sam
from convlora.backbone.weights import load_sam, save_sam
from convlora.inference.device import autocast_dtype
from convlora.pretraining.batches import BatchStream
from convlora.pretraining.loop import PretrainConfig, pretrain
from convlora.pretraining.scenes import FAMILIES
from convlora.pretraining.shards import ShardReader, write_shards
from convlora.pretraining.textures import TextureBank
from one_click import measure

SQUARE, MASKED, MASKED_TIME = 16, 0.6, 0.25
OBJECTS = ("shapes", "photo", "leaves")
SCENES = 4000


@dataclass(frozen=True)
class Variant:
    """What differs from the recipe of docs/pretraining.md."""

    spec: SamSpec = SAM_TINY
    seed: int = 0
    teacher: bool = True
    photos: bool = True
    families: tuple[str, ...] = ()
    masked: bool = False


def shaped(**numbers: Any) -> SamSpec:  # noqa: ANN401
    return replace(SAM_TINY, encoder=replace(SAM_TINY.encoder, **numbers))


VARIANTS = {
    "as it is": Variant(),
    "no teacher": Variant(teacher=False),
    "patch 16": Variant(spec=shaped(patch_size=16)),
    "masked start": Variant(masked=True),
    "as it is, seed 1": Variant(seed=1),
    "objects alone": Variant(families=OBJECTS),
    "no objects": Variant(families=tuple(name for name in FAMILIES if name not in OBJECTS)),
    "no photographs": Variant(photos=False),
    "wide": Variant(spec=shaped(embed_dim=256, depth=4, num_heads=4, global_attn_indexes=(1, 3))),
    "deep": Variant(spec=shaped(embed_dim=128, depth=16, num_heads=2, global_attn_indexes=(3, 7, 11, 15))),
}


def masked_start(sam: Sam, scenes: Path, textures: TextureBank, config: PretrainConfig, folder: Path) -> None:
    """Train the encoder to fill blanked squares; see the top of the file."""
    encoder, patch = sam.image_encoder, sam.spec.encoder.patch_size
    torch.manual_seed(config.seed)
    head = nn.Conv2d(sam.spec.decoder.dim, 3 * patch**2, kernel_size=1)
    trained = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    size, batch = config.small_size, config.small_batch
    stream = iter(BatchStream(ShardReader(scenes), size, batch, 1, config.seed + 77, textures, batch // 4))
    start, budget, steps = time.process_time(), 60 * config.minutes, 0
    dtype = autocast_dtype("auto", torch.device("cpu"))
    while (share := (time.process_time() - start) / budget) < 1:
        optimizer.param_groups[0]["lr"] = config.lr * min(1.0, share / config.warmup) * max(1 - share, 0.01)
        image = next(stream).image
        blank = torch.rand(len(image), 1, size // SQUARE, size // SQUARE) < MASKED
        blank = blank.repeat_interleave(SQUARE, -2).repeat_interleave(SQUARE, -1)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            filled = F.pixel_shuffle(head(encoder(image.masked_fill(blank, 0.0))), patch).float()
        error = ((filled - image).abs() * blank).sum() / (3 * blank.sum())
        optimizer.zero_grad(set_to_none=True)
        error.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        steps += 1
    print(f"masked start: {steps} steps, last error {error.item():.4f}")
    save_sam(sam, folder / "masked", torch.float32)


def pretrained(variant: Variant, folder: Path, minutes: float) -> Path:
    """Weights of a variant."""
    scenes = folder / "scenes"
    write_shards(
        scenes, SCENES, 1000, seed=variant.seed, workers=2, photos=variant.photos, families=variant.families
    )
    textures = TextureBank(photos=variant.photos, seed=variant.seed)
    time_left = minutes * (1 - MASKED_TIME) if variant.masked else minutes
    photographs = 0.25 if variant.photos else 0.0
    config = PretrainConfig(time_left, variant.seed, teacher=variant.teacher, photographs=photographs)
    start = None
    if variant.masked:
        start = random_sam(variant.spec, variant.seed)
        if not (folder / "masked").exists():
            masked_start(start, scenes, textures, replace(config, minutes=minutes * MASKED_TIME), folder)
        start = load_sam(str(folder / "masked")).sam
    return pretrain(scenes, folder, config, variant.spec, textures, start, time.process_time)


def judged(model: Path, data: Path) -> dict[str, Any]:
    """Zero-shot IoU and Dice of frozen features, on both sets."""
    sam, found = load_sam(str(model)).sam.eval(), {}
    for name in ("nuclei", "cracks"):
        view = argparse.Namespace(data=data / name, split="test", objects=150)
        found[name] = {
            "zero-shot IoU": measure(sam, view, "window"),
            "decoder alone": run_one(data / name, str(model), "decoder-only", steps=200, seed=0, size=256),
        }
    return found


def run_variant(name: str, options: argparse.Namespace) -> None:
    """What a process of its own does for a variant; keeps the result."""
    torch.set_num_threads(1)
    folder = folder_of(name, options)
    folder.mkdir(parents=True, exist_ok=True)
    model = pretrained(VARIANTS[name], folder, options.minutes)
    log = folder / "log.jsonl"  # a line every 50 steps
    last = json.loads(log.read_text().splitlines()[-1]) if log.exists() else "fewer than 50 steps"
    result = {"training": last, "minutes": options.minutes, **judged(model, options.data), **environment()}
    (folder / "result.json").write_text(json.dumps(result, indent=1))


def folder_of(name: str, options: argparse.Namespace) -> Path:
    folder: Path = options.work / name.replace(",", "").replace(" ", "-")
    return folder


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("data", type=Path)
    made.add_argument("--work", type=Path, required=True)
    made.add_argument("--minutes", type=float, default=10)
    made.add_argument("--jobs", type=int, default=2)
    made.add_argument("--variants", default=";".join(VARIANTS), help="names, separated by ;")
    made.add_argument("--one", help=argparse.SUPPRESS)  # the process of a variant
    options = made.parse_args()
    if options.one:
        run_variant(options.one, options)
        return
    names = options.variants.split(";")
    if unknown := [name for name in names if name not in VARIANTS]:
        made.error(f"--variants has {'; '.join(unknown)}; there are: {'; '.join(VARIANTS)}.")

    def launch(name: str) -> None:
        given = [options.data, "--work", options.work, "--minutes", options.minutes, "--one", name]
        subprocess.run([sys.executable, __file__, *map(str, given)], check=False, stdout=sys.stderr)

    kept = {name: folder_of(name, options) / "result.json" for name in names}
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(launch, [name for name, file in kept.items() if not file.exists()]))
    results = {name: json.loads(file.read_text()) for name, file in kept.items() if file.exists()}
    print(json.dumps({"benchmark": "pretraining ablation", "results": results}, indent=2))
    if failed := [name for name in names if name not in results]:
        sys.exit(
            f"Not finished: {'; '.join(failed)}. Their errors are above; the same call goes on with them."
        )


if __name__ == "__main__":
    main()
