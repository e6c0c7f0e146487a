"""Options that several commands take, with one help text each."""

from pathlib import Path
from typing import Annotated

import typer

Run = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, adapter folder or hub id.")]
Precision = Annotated[str | None, typer.Option(help="auto, fp32, bf16 or fp16; default auto.")]
Engine = Annotated[str, typer.Option(help="torch; or openvino, on CPUs (pip install 'convlora[openvino]').")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ..., mps; by default a GPU, if any.")]
Backbone = Annotated[str | None, typer.Option(help="sam-tiny (default), a hub id, a folder, or Meta's .pth.")]
BackboneNow = Annotated[
    str | None, typer.Option("--backbone", help="Where the backbone is now, if not where it was in training.")
]
Preset = Annotated[str | None, typer.Option(help="default, or paper: the official code's way.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training images; default 30.")]
MaxSteps = Annotated[int | None, typer.Option(help="Optimiser steps; overrides --epochs.")]
BatchSize = Annotated[
    int | None, typer.Option(help="Images for one optimiser step, over all processes; default 4.")
]
ImageSize = Annotated[
    int | None, typer.Option(help="Side of the model's input in pixels; default the backbone's own.")
]
ConfigFile = Annotated[Path | None, typer.Option(help="config.yaml to start from.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key of a configuration; repeatable."),
]
Tile = Annotated[
    int | None, typer.Option(help="Cut larger images into tiles of this side, in pixels of the image.")
]
TileOverlap = Annotated[
    int | None, typer.Option(help="Pixels over which tiles fade into each other; default --tile / 4.")
]
