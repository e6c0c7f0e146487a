"""Commands that work with a run: train, evaluate, predict."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convlora.cli.data import Classes, Data, PaletteFile, split_names
from convlora.errors import ConfigError

if TYPE_CHECKING:
    from convlora.config import RunConfig

Run = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, adapter folder or hub id.")]
Precision = Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default a GPU if there is one.")]
Backbone = Annotated[str | None, typer.Option(help="sam-tiny, a hub id, a folder, or Meta's .pth.")]


def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run folder.")],
    backbone: Backbone = None,
    method: Annotated[str | None, typer.Option(help="See `convlora methods`; default conv-lora.")] = None,
    preset: Annotated[str | None, typer.Option(help="default, or paper: the official code's way.")] = None,
    classes: Classes = None,
    palette: PaletteFile = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimiser steps; overrides --epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images for one optimiser step.")] = None,
    micro_batch: Annotated[int | None, typer.Option(help="Images in memory at once.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the model's input in pixels.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Start of all random numbers.")] = None,
    precision: Precision = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would happen, memory included; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
    config: Annotated[Path | None, typer.Option(help="config.yaml to start from.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, repeatable.")] = None,
) -> None:
    """Fine-tune SAM on DATA and keep the model that is best on its validation images."""
    from accelerate import PartialState

    from convlora.config import check_same, make_config, parse_assignments, read_yaml
    from convlora.training.fit import fit, run_folder_is_free

    if resume:
        config = out / "config.yaml"

    options: dict[str, Any] = {
        "data": data,
        "out": out,
        "backbone": backbone,
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
    }
    given = {key: value for key, value in options.items() if value is not None}
    assigned = parse_assignments(settings or [])
    if both := sorted(given.keys() & assigned.keys()):
        raise ConfigError(f"'{both[0]}' is given both as an option and with --set. Give it once.")
    values = {**(read_yaml(config) if config else {}), **given, **assigned}
    values["method"] = _merge_method(values.get("method"), method)
    chosen = make_config(values)
    if resume:
        check_same(chosen, make_config(read_yaml(out / "config.yaml")), out)
    else:
        run_folder_is_free(out)
    if dry_run:
        _print_dry_run(chosen, as_json)
        return
    best = fit(chosen, resume)
    if not PartialState().is_main_process:
        return
    print(f"Best: step {best['step']}, validation {_headline(best)}")
    colours = f" --palette {chosen.palette}" if chosen.palette else ""
    print(f"Next: convlora evaluate {out} {data}{colours}")


def evaluate(
    run: Run,
    data: Data,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the scores.")] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="Folder for pictures: image | truth | prediction.")
    ] = None,
    palette: PaletteFile = None,
    backbone: Backbone = None,
    device: Device = None,
    precision: Precision = None,
) -> None:
    """Score a model on a split of DATA, at native resolution."""
    from convlora.cli.show import print_scores
    from convlora.evaluation import evaluate_run

    scores = evaluate_run(
        run,
        data,
        split,
        json_file=json_file,
        pictures=overlay,
        palette=palette,
        backbone=backbone,
        device=device,
        precision=precision or "auto",
    )
    print_scores(scores)


def predict(
    run: Run,
    inputs: Annotated[list[Path], typer.Argument(metavar="IMAGE_OR_DIR...", help="Images or folders.")],
    out: Annotated[Path, typer.Option(help="Folder for the masks.")],
    overlay: Annotated[bool, typer.Option("--overlay", help="Also draw the masks over the images.")] = False,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Also write class probabilities as .npy (K, H, W) float16."),
    ] = False,
    backbone: Backbone = None,
    device: Device = None,
    precision: Precision = None,
) -> None:
    """Write the mask of every image as a PNG of class ids, at the image's own size."""
    from convlora.checkpoint import from_pretrained
    from convlora.inference.files import predict_files
    from convlora.inference.predictor import Predictor

    predictor = Predictor(from_pretrained(run, backbone), device, precision or "auto")
    failures = predict_files(predictor, inputs, out, overlay=overlay, probabilities=probabilities)
    if failures:
        for failure in failures:
            print(f"error: {failure}")
        raise typer.Exit(1)


def _print_dry_run(chosen: "RunConfig", as_json: bool) -> None:
    from convlora.training.dry_run import dry_run

    found = dry_run(chosen)
    print(json.dumps(found.to_dict(), indent=2) if as_json else "\n".join(found.lines()))


def _merge_method(configured: object, name: str | None) -> dict[str, Any]:
    """Method of the configuration file or `--set method.x=`, with `--method` on top."""
    options: dict[str, Any] = {}
    if isinstance(configured, str):
        options = {"name": configured}
    elif isinstance(configured, dict):
        options = dict(configured)
    elif configured is not None:
        raise ConfigError(f"method is {configured!r}; it must be a name, or keys such as name and rank.")
    if name is not None and options.get("name", name) != name:
        raise ConfigError(
            f"--method is {name}, but the configuration says {options['name']}. Give one of them."
        )
    return options | ({"name": name} if name is not None else {})


def _headline(scores: dict[str, Any]) -> str:
    return f"mean Dice {scores['mean_dice_foreground']:.4f}, mean IoU {scores['mean_iou']:.4f}"
