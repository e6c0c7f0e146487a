"""Options that a run may change when it is resumed: told, and recorded in its config.yaml."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convlora.config import MAY_CHANGE, RunConfig, load_config
from convlora.output import write_text
from convlora.run_files import CONFIG


def changed_options(now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Options that are not as the run in `now.out` recorded them: key -> value before, value now."""
    before = load_config(now.out / CONFIG)
    pairs = {key: (getattr(before, key), getattr(now, key)) for key in MAY_CHANGE}
    return {key: (old, new) for key, (old, new) in pairs.items() if old != new}


def tell_changes(changed: dict[str, tuple[Any, Any]]) -> Iterator[str]:
    """A line for each option, with what it means for the weights."""
    for key, (old, new) in changed.items():
        told = f"{key} was {old} before, and is {new} now: "
        if key == "micro_batch":  # sums are taken in another order
            yield f"warning: {told}the run goes on, but not bit for bit as if it had not been cut off"
        else:
            yield f"note: {told}the weights do not depend on it"


def record_changes(changed: dict[str, tuple[Any, Any]], out: Path) -> None:
    """Put the values now in use into config.yaml; it stays as it is where nothing changed."""
    if changed:
        file = out / CONFIG
        values = {key: new for key, (_, new) in changed.items()}
        write_text(file, load_config(file).model_copy(update=values).to_yaml())
