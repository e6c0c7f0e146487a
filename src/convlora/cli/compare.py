"""Commands that answer questions about methods: compare, analyze."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convlora.cli.data import Classes, Data, PaletteFile, split_names
from convlora.cli.options import (
    Backbone,
    BackboneNow,
    BatchSize,
    ConfigFile,
    Device,
    Epochs,
    ImageSize,
    MaxSteps,
    Precision,
    Preset,
    Run,
    Settings,
)

if TYPE_CHECKING:
    from convlora.comparison.outcome import Outcome


def compare(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder of the comparison; the same call goes on with it.")],
    methods: Annotated[
        str, typer.Option(help="all, or names with options: lora,conv-lora:rank=8,unet (not SAM).")
    ] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first run; fresh ones confirm.")] = 0,
    train_sizes: Annotated[
        str, typer.Option(help="Numbers of training images, such as 8,16,32,all.")
    ] = "all",
    tune_lr: Annotated[
        bool, typer.Option("--tune-lr", help="Choose each method's learning rate on the validation split.")
    ] = False,
    reference: Annotated[
        str | None, typer.Option(help="Method that the others are compared with; lora if it is there.")
    ] = None,
    metrics: Annotated[
        str, typer.Option(help="Scores in the table; the first is in the pictures.")
    ] = "mean_dice_foreground,image_mean_dice_foreground,mean_iou",
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    ray: Annotated[
        str | None, typer.Option(help="Spread the runs over a Ray cluster: its address, or 'local'.")
    ] = None,
    backbone: Backbone = None,
    preset: Preset = None,
    classes: Classes = None,
    palette: PaletteFile = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    image_size: ImageSize = None,
    precision: Precision = None,
    config: ConfigFile = None,
    settings: Settings = None,
) -> None:
    """Compare methods on DATA: one run for each method and seed, one table."""
    from convlora.cli.combine import combine
    from convlora.comparison.compare import compare as run
    from convlora.comparison.engines import choose_engine
    from convlora.comparison.settings import OF_A_RUN, make_settings, refuse_of_a_run
    from convlora.settings import parse_assignments

    refuse_of_a_run(parse_assignments(settings or []))
    options = {
        "data": data,
        "out": out,
        "backbone": backbone,
        "preset": preset,
        "classes": split_names(classes),
        "palette": palette,
        "epochs": epochs,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "image_size": image_size,
        "precision": precision,
    }
    asked = combine(options, settings or [], config)
    wanted = make_settings(
        methods,
        seeds,
        train_sizes,
        reference=reference,
        metrics=metrics,
        split=split,
        tune_lr=tune_lr,
        first_seed=first_seed,
    )
    unused = [key for key in OF_A_RUN if asked.values.get(key) is not None]
    if unused:
        print(f"note: {', '.join(unused)} of {config} not used: the runs of a comparison differ in that")
    try:
        outcome = run(asked.config(), wanted, choose_engine(ray))
    except KeyboardInterrupt:
        print("The same command goes on from here.", file=sys.stderr)
        raise
    _print_tables(outcome)
    print(f"Written: {out}/results.md, results.csv, results.json and pictures")
    if outcome.failures:
        raise typer.Exit(1)


def analyze(
    run: Run,
    data: Data,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; default RUN/analysis.")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    images: Annotated[int, typer.Option(min=2, help="At most so many images of a split.")] = 32,
    palette: PaletteFile = None,
    backbone: BackboneNow = None,
    device: Device = None,
) -> None:
    """What tuning did to the encoder: chosen scales, attention distance, linear probe; pictures and text."""
    from convlora.analysis.analyze import README, place_of
    from convlora.analysis.analyze import analyze as run_analysis

    place = place_of(run, out)
    run_analysis(
        run, data, place, split=split, images=images, palette=palette, backbone=backbone, device=device
    )
    print(f"Written: {place}. Read {place / README} first.")


def _print_tables(outcome: "Outcome") -> None:
    from rich.markup import escape
    from rich.table import Table

    from convlora.cli.show import print_table
    from convlora.comparison.tables import header, size_name, table_cells

    for size in outcome.settings.train_sizes:
        table = Table(title=size_name(size))
        for name in header(outcome.settings):
            table.add_column(escape(name), no_wrap=True, justify="left" if name == "method" else "right")
        for row in outcome.rows:
            if row.train_images == size:
                table.add_row(*map(escape, table_cells(row, outcome.settings)))
        print_table(table)
