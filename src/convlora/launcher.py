"""Launchers such as torchrun start a command several times at once; only training shares its work so."""

import os

from convlora.errors import ConfigError


def refuse_launcher(name: str) -> None:
    """Refuse to do the same work in each of several processes, which would write over each other.

    Args:
        name: of the command.

    Raises:
        ConfigError: a launcher has started several processes.
    """
    processes = os.environ.get("WORLD_SIZE", "")
    # left in the environment, without what a launcher sets beside it, it means nothing to these commands
    launched = processes.isdecimal() and int(processes) > 1 and {"RANK", "LOCAL_RANK"} & os.environ.keys()
    if launched:
        raise ConfigError(
            f"'{name}' runs in one process, and the launcher has started {processes}. "
            "Start it without the launcher."
        )
