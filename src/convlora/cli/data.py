"""Commands about data: check, sample."""

from pathlib import Path
from typing import Annotated

import typer

from convlora.settings import as_typed

Data = Annotated[
    Path,
    typer.Argument(
        metavar="DATA", help="Folder with images and masks; or a .csv, COCO .json, YOLO data.yaml."
    ),
]
Classes = Annotated[str | None, typer.Option(help="Class names, id 0 first, separated by commas.")]
PaletteFile = Annotated[
    Path | None,
    typer.Option("--palette", help="Colours of the classes: lines 'R G B name'; default DATA/palette.txt."),
]

sample_app = typer.Typer(help="Write a sample data set to try the software on.", no_args_is_help=True)


def split_names(names: str | None) -> list[str] | None:
    """Read 'a,b,c'; None stays None, and empty names stay, so that they are told of."""
    return None if names is None else [name.strip() for name in names.split(",")]


def check(
    data: Data,
    classes: Classes = None,
    palette: PaletteFile = None,
    group_by: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Images in whose names it finds the same text, as a patient's number, must be in one split.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Find every problem in the data, by file, with the fix. Exit code 1 if there are errors."""
    from convlora.data.check import check_dataset
    from convlora.data.progress import show_progress

    report = check_dataset(
        data,
        classes=split_names(classes),
        palette=palette,
        group_by=group_by,
        progress=show_progress,
    )
    print(report.to_json() if as_json else report.to_text())
    if not report.ok:
        raise typer.Exit(1)


@sample_app.callback()
def _sample() -> None:
    """Write a sample data set to try the software on."""


@sample_app.command()
def brain(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; must be empty or new.")],
) -> None:
    """Slices of the MNI152 brain MRI with grey and white matter (needs the extra 'sample')."""
    from convlora.data.sample import write_brain_sample

    counts = write_brain_sample(folder)
    print(f"Wrote {', '.join(f'{n} {split}' for split, n in counts.items())} slices to {folder}.")
    print(f"Next: {as_typed(['convlora', 'train', str(folder), '--out', 'runs/brain'])}")
