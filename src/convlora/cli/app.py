"""The commands; each imports what it needs when it runs, so that `--help` is fast."""

import errno
import functools
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from convlora._version import __version__
from convlora.cli import compare, convert, data, models, runs
from convlora.errors import ConvLoraError
from convlora.launcher import refuse_launcher
from convlora.settings import expand_user

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


def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune the Segment Anything Model on your own images with Conv-LoRA."""
    if context.invoked_subcommand != "train":
        refuse_launcher(str(context.invoked_subcommand))


def _with_home(value: object) -> object:
    """What a command was given, with the home folder for a leading '~': shells leave it in `--out=~/run`."""
    if isinstance(value, list):
        return [_with_home(item) for item in value]
    return type(value)(expand_user(str(value))) if isinstance(value, str | Path) else value


def _ends_in_a_message(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what may go wrong into a message and an exit code; the rest is a bug and shows its traceback."""

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:  # noqa: ANN401  # of any command
        try:
            try:
                command(*arguments, **{key: _with_home(value) for key, value in options.items()})
            finally:
                sys.stdout.flush()  # a closed pipe shows here, not when Python ends
        except ConvLoraError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from error
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            raise typer.Exit(130) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader, such as `head`, has closed the pipe
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains when it ends
                raise typer.Exit(141) from None
            place = f"{error.filename}: " if error.filename is not None else ""
            print(f"error: {place}{error.strerror or error}", file=sys.stderr)
            raise typer.Exit(2) from error

    return run


app.callback()(_ends_in_a_message(_root))
for command, function in (
    ("check", data.check),
    ("convert", convert.convert),
    ("train", runs.train),
    ("evaluate", runs.evaluate),
    ("predict", runs.predict),
    ("compare", compare.compare),
    ("analyze", compare.analyze),
    ("methods", models.methods),
    ("backbones", models.backbones),
    ("info", models.info),
    ("merge", models.merge),
    ("pretrain", models.pretrain),
):
    app.command(command)(_ends_in_a_message(function))
for info in data.sample_app.registered_commands:
    if info.callback is not None:
        info.callback = _ends_in_a_message(info.callback)
app.add_typer(data.sample_app, name="sample")


def _open_closed_streams() -> None:
    """Python has None for a stream that the caller closed: what is for one would be printed on the other."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  # for good


def main() -> None:
    """Run the command line.

    Exit codes: 0; 1 where some files failed or the data has errors; 2 for a user's mistake or a place that
    cannot be read or written, with a message and no traceback; 130 after Ctrl-C; 141 for a closed pipe.
    """
    # the check names such files itself; a raw line of Python in the middle of a run helps nobody
    warnings.filterwarnings("ignore", module=r"PIL\.")
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that cannot show a name shows its escape
            stream.reconfigure(errors="backslashreplace")
    app()
