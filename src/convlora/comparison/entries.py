"""What is compared: methods with options, seeds, numbers of training images; each combination is a cell."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from convlora.adapters import is_everywhere, is_method, methods
from convlora.config import make_config
from convlora.errors import ConfigError
from convlora.settings import did_you_mean, parse_assignments

#: Baselines that are not SAM: name -> what they change in the configuration.
BASELINES: dict[str, dict[str, Any]] = {"unet": {"backbone": "unet", "method": {"name": "full"}}}


@dataclass(frozen=True)
class Entry:
    """A row of the table.

    Args:
        label: as the user wrote it, such as 'lora' or 'conv-lora:rank=8'.
        changes: keys of `RunConfig` that make it.
    """

    label: str
    changes: dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        entry: the method.
        seed: of everything random in the run.
        train_images: how many of the training images; None is all.
        lr: peak learning rate; None is the default.
        tuning: whether it only serves to choose the learning rate.
    """

    entry: Entry
    seed: int
    train_images: int | None = None
    lr: float | None = None
    tuning: bool = False

    @property
    def name(self) -> str:
        """Name of its folder: for people, and different for different cells."""
        label = re.sub(r"[^\w.=-]+", "_", self.entry.label)
        if label != self.entry.label:
            label += "-" + hashlib.sha256(self.entry.label.encode()).hexdigest()[:6]
        images = "" if self.train_images is None else f"-n{self.train_images}"
        rate = f"-lr{self.lr:.3g}" if self.tuning else ""
        return f"{label}{images}-seed{self.seed}{rate}"

    def config(self) -> dict[str, Any]:
        """Keys of `RunConfig` that the cell sets."""
        own = {"seed": self.seed, "train_images": self.train_images}
        return {**self.entry.changes, **own, **({} if self.lr is None else {"lr": self.lr})}


def parse_methods(text: str) -> list[Entry]:
    """Read `--methods`: 'all', or names with options such as 'lora,conv-lora:rank=8:top_k=2,unet'.

    Raises:
        ConfigError: a name or an option is unknown, or an entry is there twice.
    """
    # a comma inside of brackets is part of an option: conv-lora:scales=[1,2]
    words = [word.strip() for word in re.split(r",(?![^\[]*\])", text) if word.strip()]
    labels = [label for word in words for label in (methods() if word == "all" else [word])]
    if not labels:
        raise ConfigError(f"--methods is {text!r}; give 'all' or names, such as lora,conv-lora.")
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ConfigError(f"--methods names {', '.join(twice)} twice. Leave one out.")
    return [_entry(label) for label in labels]


def _entry(label: str) -> Entry:
    name, *assignments = label.split(":")
    if name in BASELINES:
        if assignments:
            raise ConfigError(f"--methods: {name} takes no options, got {':'.join(assignments)}.")
        return Entry(label, BASELINES[name])
    if not is_method(name):
        raise ConfigError(
            f"--methods: there is no method '{name}'. {did_you_mean(name, [*methods(), *BASELINES])}"
        )
    if not is_everywhere(name):
        raise ConfigError(
            f"--methods: '{name}' is registered in this process alone, but every run is another process. "
            "Put it into a package with an entry point of the group 'convlora.methods' (docs/python.md), and "
            "install that."
        )
    options = parse_assignments(f"method.{assignment}" for assignment in assignments).get("method", {})
    method = {"name": name, **options}
    make_config({"data": "data", "out": "out", "method": method}, {"method": f"--methods {label}"})
    return Entry(label, {"method": method})


def parse_train_sizes(text: str) -> list[int | None]:
    """Read `--train-sizes`, such as '8,16,all'; None stands for all.

    Raises:
        ConfigError: a word is neither a number from 1 nor 'all', or is there twice.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    wrong = [word for word in words if word != "all" and not re.fullmatch(r"[1-9][0-9]*", word)]
    if wrong or not words or len(set(words)) < len(words):
        raise ConfigError(
            f"--train-sizes is {text!r}; give different numbers of images, and 'all', such as 8,16,32,all."
        )
    return [None if word == "all" else int(word) for word in words]


def make_cells(
    entries: Sequence[Entry], seeds: Iterable[int], train_sizes: Sequence[int | None], rates: dict[str, float]
) -> list[Cell]:
    """All runs of the tables: seed by seed, so that a comparison that is cut off is fair at each moment.

    Args:
        entries: methods.
        seeds: of everything random, a run of each method for each.
        train_sizes: numbers of training images.
        rates: label -> tuned learning rate; others take the default.
    """
    return [
        Cell(entry, seed, size, rates.get(entry.label))
        for size in train_sizes
        for seed in seeds
        for entry in entries
    ]


def digest(config: dict[str, Any]) -> str:
    """Short hash of a configuration: a result belongs to it and to no other."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:16]
