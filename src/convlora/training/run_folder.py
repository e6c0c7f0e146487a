"""Where a run may be written."""

from pathlib import Path

from convlora.adapter_folder import check_no_adapter
from convlora.errors import ConfigError
from convlora.output import check_folder
from convlora.run_files import BEST, CONFIG, ENVIRONMENT, LAST, LOG, RECORD, SCORES, STATE
from convlora.training.environment import is_of_a_run

_RUN = (LOG, SCORES, STATE, BEST, LAST)


def record_of(out: Path) -> Path:
    """The configuration that a run in `out` was started with.

    Raises:
        ConfigError: there is no run.
    """
    record = out / CONFIG
    if not record.is_file():
        raise ConfigError(
            f"{record} does not exist, so there is no run to resume. Start it without --resume "
            "(in Python resume=)."
        )
    return record


def check_run_folder_is_free(out: Path, data: Path | None = None) -> None:
    """Refuse a run folder where something would be lost, before any work.

    Args:
        out: the new run folder; nothing is made.
        data: the data folder.

    Raises:
        ConfigError: it cannot be written into, holds a run or a file of the user's own that the run would
            write, or lies inside the data folder, around it, or in an adapter folder.
    """
    check_folder(out, "--out")
    check_no_adapter(out)
    place = out.resolve()
    if data is not None:
        source = data.resolve()
        if place == source or source in place.parents:
            raise ConfigError(
                f"--out {out} is inside the data folder {data}. Write the run to another folder."
            )
        if any(source == place / name or place / name in source.parents for name in _RUN):
            raise ConfigError(
                f"The data folder {data} is where the run would write. Give another --out than {out}."
            )
    there = [name for name in _RUN if (out / name).exists()]
    if there:
        raise ConfigError(
            f"{out} holds a run already ({', '.join(there)}). Go on with it with --resume "
            "(in Python resume=True), choose another --out, or delete it."
        )
    # a run that was stopped before its first step leaves these too, but with its environment.json
    own = [name for name in (CONFIG, ENVIRONMENT, RECORD) if (out / name).exists()]
    if own and not is_of_a_run(out):
        raise ConfigError(
            f"{out / own[0]} would be overwritten by the record of the run. Move it, or choose another --out."
        )
