"""Commands that work with a run: train, evaluate, predict."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convlora.cli.data import Classes, Data, PaletteFile, split_names
from convlora.cli.options import (
    Backbone,
    BackboneNow,
    BatchSize,
    ConfigFile,
    Device,
    Engine,
    Epochs,
    ImageSize,
    MaxSteps,
    Precision,
    Preset,
    Run,
    Settings,
    Tile,
    TileOverlap,
)
from convlora.errors import ConfigError
from convlora.settings import as_typed

if TYPE_CHECKING:
    from convlora.config import RunConfig
    from convlora.inference.jobs import Existing


def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder.")],
    backbone: Backbone = None,
    method: Annotated[str | None, typer.Option(help="See `convlora methods`; default conv-lora.")] = None,
    preset: Preset = None,
    classes: Classes = None,
    palette: PaletteFile = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    micro_batch: Annotated[
        int | None, typer.Option(help="Images in memory at once; default 1 for SAM's sizes.")
    ] = None,
    image_size: ImageSize = None,
    lr: Annotated[
        float | None,
        typer.Option(help="Peak learning rate; default 1e-4 for SAM's sizes, 1e-3 for sam-tiny."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Start of all random numbers; default 0.")] = None,
    precision: Precision = None,
    checkpointing: Annotated[
        bool | None,
        typer.Option("--checkpointing", help="Less memory, more time: compute blocks again backwards."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would happen, memory included; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Fine-tune SAM on DATA and keep the model that is best on its validation images."""
    from accelerate import PartialState

    from convlora.cli.combine import combine
    from convlora.config import check_same, load_config
    from convlora.training.fit import fit
    from convlora.training.run_folder import check_run_folder_is_free, record_of

    if resume and config is not None:
        raise ConfigError(
            f"--resume goes on with the configuration in {out}, so --config {config} has no place. "
            "Leave out one."
        )
    if as_json and not dry_run:
        raise ConfigError(
            "--json goes with --dry-run; what a training gives is in its metrics.json. Leave it out."
        )
    record = record_of(out) if resume else None

    options: dict[str, Any] = {
        "data": data,
        "out": out,
        "backbone": backbone,
        "method": method,
        "preset": preset,
        "classes": split_names(classes),
        "palette": palette,
        "epochs": epochs,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "micro_batch": micro_batch,
        "image_size": image_size,
        "lr": lr,
        "seed": seed,
        "precision": precision,
        "checkpointing": checkpointing,
    }
    asked = combine(options, settings or [], record or config)
    chosen = asked.config()
    if record is not None:
        check_same(chosen, load_config(record), out)
    else:
        check_run_folder_is_free(out, data)
        for note in asked.notes:
            print(note, file=sys.stderr if as_json else sys.stdout)
    if dry_run:
        _print_dry_run(chosen, resume, as_json)
        return
    best = fit(chosen, resume, sys.argv)
    if not PartialState().is_main_process:
        return
    print(f"Best: step {best['step']}, validation {_headline(best)}")
    colours = ["--palette", str(chosen.palette)] if chosen.palette else []
    following = ["convlora", "evaluate", str(out), str(data), *colours, *_split_to_score(out)]
    print(f"Next: {as_typed(following)}")


def evaluate(
    run: Run,
    data: Data,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the scores.")] = None,
    per_image: Annotated[Path | None, typer.Option(help=".csv for the scores of each image.")] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="Folder for pictures: image | truth | prediction.")
    ] = None,
    palette: PaletteFile = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over pictures in --overlay.")] = False,
    backbone: BackboneNow = None,
    device: Device = None,
    precision: Precision = None,
    engine: Engine = "torch",
    tile: Tile = None,
    tile_overlap: TileOverlap = None,
) -> None:
    """Score a model on a split of DATA, at native resolution."""
    from convlora.cli.show import print_scores
    from convlora.evaluation import evaluate_run

    told: list[str] = []
    scores = evaluate_run(
        run,
        data,
        split,
        json_file=json_file,
        per_image=per_image,
        pictures=overlay,
        palette=palette,
        overwrite=overwrite,
        backbone=backbone,
        device=device,
        precision=precision or "auto",
        engine=engine,
        tile=tile,
        tile_overlap=tile_overlap,
        tell=told.append,
    )
    print_scores(scores)
    for line in told:
        print(line)


def predict(
    run: Run,
    inputs: Annotated[list[Path], typer.Argument(metavar="IMAGE_OR_DIR...", help="Images or folders.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")],
    overlay: Annotated[bool, typer.Option("--overlay", help="Also draw the masks over the images.")] = False,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Also write class probabilities as .npy (K, H, W) float16."),
    ] = False,
    geotiff: Annotated[
        bool,
        typer.Option("--geotiff", help="Also write each mask as GeoTIFF, in its image's place on the map."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over files in --out.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave files in --out, write the missing ones.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
    backbone: BackboneNow = None,
    device: Device = None,
    precision: Precision = None,
    engine: Engine = "torch",
    tile: Tile = None,
    tile_overlap: TileOverlap = None,
) -> None:
    """Write the mask of every image as a PNG of class ids, at the image's own size."""
    from convlora.inference.jobs import plan_jobs
    from convlora.inference.tiles import choose_tiles

    if overwrite and skip_existing:
        raise ConfigError("--overwrite and --skip-existing are both given. Give one of them.")
    existing: Existing = "overwrite" if overwrite else "skip" if skip_existing else "refuse"
    jobs = plan_jobs(
        inputs, out, overlay=overlay, probabilities=probabilities, geotiff=geotiff, existing=existing
    )
    choose_tiles(tile, tile_overlap)

    # below what needs no torch, which takes seconds to load: mistakes show at once
    from convlora.checkpoint import from_pretrained
    from convlora.cli.outcome import tell
    from convlora.inference.engine import choose_computing
    from convlora.inference.files import run_jobs
    from convlora.inference.predictor import Predictor

    slow = choose_computing(engine, device, precision or "auto").warning  # before the model is loaded
    if slow:
        print(f"warning: {slow}", file=sys.stderr)
    predictor = Predictor(
        from_pretrained(run, backbone),
        device,
        precision or "auto",
        engine,
        tile=tile,
        tile_overlap=tile_overlap,
    )
    code = tell(run_jobs(predictor, jobs), jobs, inputs, out, overwrite=overwrite, as_json=as_json)
    if code:
        raise typer.Exit(code)


def _print_dry_run(chosen: "RunConfig", resume: bool, as_json: bool) -> None:
    from convlora.training.dry_run import dry_run

    found = dry_run(chosen, resume)
    print(json.dumps(found.to_dict(), indent=2) if as_json else "\n".join(found.lines()))


def _split_to_score(out: Path) -> list[str]:
    """Option of `evaluate` for a run whose data has no test images."""
    from convlora.data.splits import read_record

    record = read_record(out)
    return ["--split", "val"] if record is not None and not record.splits.get("test") else []


def _headline(scores: dict[str, Any]) -> str:
    return f"mean Dice {scores['mean_dice_foreground']:.4f}, mean IoU {scores['mean_iou']:.4f}"
