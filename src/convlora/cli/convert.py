"""Command convert: any readable data set in the plain layout."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from convlora.cli.data import Classes, Data, PaletteFile, split_names
from convlora.cli.options import Tile
from convlora.settings import as_typed


def convert(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder to write; must be empty or new.")],
    palette: PaletteFile = None,
    classes: Classes = None,
    seed: Annotated[int, typer.Option(help="Of the split, where the data has none.")] = 0,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="For that split: images in whose names it finds the same text, as a patient's number, stay "
            "together.",
        ),
    ] = None,
    tile: Tile = None,
) -> None:
    """Write DATA as {train,val,test}/{images,masks} with masks of class ids, and classes.txt."""
    from convlora.data.convert import convert_dataset
    from convlora.data.progress import show_progress

    written = convert_dataset(
        data,
        out,
        palette=palette,
        classes=split_names(classes),
        split_seed=seed,
        group_by=group_by,
        tile=tile,
        progress=show_progress,
    )
    for line in written.warnings:
        print(f"warning: {line}", file=sys.stderr)
    counts = ", ".join(f"{count} {split}" for split, count in written.counts.items())
    print(f"Wrote {counts} images with masks of {len(written.classes)} classes to {out}.")
    for line in written.notes:
        print(line)
    if written.left_out:
        print(f"Left out {written.left_out} tiles that have one colour or no label.")
    print(f"Next: {as_typed(['convlora', 'train', str(out), '--out', 'RUN'])}")
    if tile is not None:
        print(f"Give predict and evaluate --tile {tile} for whole images.")
