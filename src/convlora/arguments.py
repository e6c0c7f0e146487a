"""Arguments of the Python functions: checked as the command line checks its own, `~` for the home folder."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from convlora.errors import ConfigError
from convlora.settings import expand_user, no_path


def as_names(classes: Sequence[str] | None) -> list[str] | None:
    """Class names, id 0 first; a text is refused, whose letters would be names."""
    if classes is None:
        return None
    names = list(classes) if isinstance(classes, Iterable) and not isinstance(classes, str | bytes) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"classes is {classes!r}; it must be a list of names, id 0 first.")
    return names


def as_inputs(images: str | Path | Sequence[str | Path]) -> list[Path]:
    """One image or folder, or several."""
    given: Iterable[object] = [images]
    if isinstance(images, Iterable) and not isinstance(images, str | bytes | Path):
        given = images
    inputs = [as_path(path, "images") for path in given]
    if not inputs:
        raise ConfigError(f"images is {images!r}; it must be an image, a folder, or a list of at least one.")
    return inputs


def as_backbone(value: str | Path | None) -> str | None:
    """Name of a backbone, hub id or path."""
    return None if value is None else str(as_location(value, "backbone"))


def as_optional_path(value: str | Path | None, name: str) -> Path | None:
    """A path, where one is given."""
    return None if value is None else as_path(value, name)


def as_path(value: object, name: str) -> Path:
    """A path."""
    return Path(as_location(value, name))


def as_location(value: object, name: str) -> str:
    """A path, or something else that is written like one, such as a hub id."""
    if isinstance(value, str | Path) and str(value):
        location = expand_user(str(value))
        if wrong := no_path(location):
            raise ConfigError(f"{name}: {wrong}")
        return location
    raise ConfigError(f"{name} is {value!r}; it must be a path, as text or pathlib.Path.")
