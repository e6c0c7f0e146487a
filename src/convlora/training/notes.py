"""What of a configuration has no effect on this data, goes against it, or follows unasked: said aloud."""

from convlora.config import RunConfig
from convlora.data.classes import read_class_names
from convlora.data.find import find_source
from convlora.errors import DataError


def remarks(config: RunConfig) -> list[str]:
    """What follows from a method that leaves the encoder untouched; nothing for others."""
    if config.trains_encoder:
        return []
    if config.keeps_embeddings:
        return [
            "the encoder stays as it is: its embeddings are computed once and kept; keep_embeddings=false "
            "computes them anew at every step"
        ]
    if config.keep_embeddings is False:
        return []
    return [
        f"augment is {config.augment}: each epoch has new pixels, so the encoder runs for every image of "
        "every epoch. With augment=flip or augment=none its embeddings would be computed once, and an epoch "
        "after the first take a small part of the time."
    ]


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
