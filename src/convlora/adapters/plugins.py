"""Methods of other packages, found by their entry points, so that every command and process knows them."""

from collections.abc import Container
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from convlora.errors import ConfigError

#: Group of the entry points; the name of each is the method's, its value `module:Class`.
GROUP = "convlora.methods"
_loaded: set[str] = set()


def load_plugins(table: Container[str]) -> None:
    """Import the methods that installed packages declare; each registers itself.

    Args:
        table: the names that are registered, which grows by the import.

    Raises:
        ConfigError: one cannot be imported, its name is taken, or it does not register itself.
    """
    for point in _points():
        if point.name in _loaded:
            continue
        package = point.dist.name if point.dist else "a package"
        what = f"The method '{point.name}', which {package} declares as {point.value},"
        try:
            point.load()
        except Exception as error:  # a stranger's module may raise anything
            raise ConfigError(
                f"{what} cannot be loaded: {type(error).__name__}: {error} Mend or uninstall {package}."
            ) from error
        if point.name not in table:
            raise ConfigError(
                f"{what} does not register itself under that name. Put @register before the class, and give "
                f"it the name of its entry point, or uninstall {package}."
            )
        _loaded.add(point.name)


def is_plugin(name: str) -> bool:
    """Whether a method came by an entry point, so that other processes find it too."""
    return name in _loaded


@cache
def _points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))
