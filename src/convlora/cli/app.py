"""The commands; each imports what it needs when it runs, so that `--help` is fast."""

import os
import sys
from typing import Annotated

import typer

from convlora._version import __version__
from convlora.cli import convert, data, models, runs
from convlora.errors import ConfigError, ConvLoraError

app = typer.Typer(
    help="Fine-tune the Segment Anything Model on your own images with Conv-LoRA.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"convlora {__version__}")
        raise typer.Exit


def _refuse_launcher(command: str | None) -> None:
    """Only training shares its work among processes; every other command would be done by each of them."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and command != "train":
        raise ConfigError(
            f"'{command}' runs in one process, and the launcher has started {processes}. "
            "Start it without the launcher."
        )


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune the Segment Anything Model on your own images with Conv-LoRA."""
    _refuse_launcher(context.invoked_subcommand)


for command, function in (
    ("check", data.check),
    ("convert", convert.convert),
    ("train", runs.train),
    ("evaluate", runs.evaluate),
    ("predict", runs.predict),
    ("methods", models.methods),
    ("backbones", models.backbones),
    ("info", models.info),
    ("pretrain", models.pretrain),
):
    app.command(command)(function)
app.add_typer(data.sample_app, name="sample")


def main() -> None:
    """Run the command line; a user's mistake ends in a message and exit code 2, without a traceback."""
    try:
        app()
    except ConvLoraError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None
