"""What of a configuration has no effect on this data, or goes against it: said, not silently done."""

from convlora.config import RunConfig
from convlora.data.classes import read_class_names
from convlora.data.find import find_source
from convlora.errors import DataError


def notes(config: RunConfig, classes: tuple[str, ...]) -> list[str]:
    """Notes for the user.

    Args:
        config: the run.
        classes: those that count.
    """
    found = []
    try:
        source = find_source(config.data)
        named = source.classes or read_class_names(source.base)
    except DataError:
        named = None  # the file is not used, as check_dataset has passed with the classes that were given
    if named is not None and named != classes:
        found.append(
            f"classes: {', '.join(classes)} count, as given; the data folder names {', '.join(named)}. "
            "convlora evaluate will ask for data that names the former."
        )
    if len(classes) == 2 and config.num_masks is not None:
        found.append("num_masks and multiclass_head have no effect: the data has two classes.")
    return found
