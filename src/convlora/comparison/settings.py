"""What a comparison was asked for, recorded in its folder, so that it can be gone on with and added to."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convlora.comparison.entries import parse_methods, parse_train_sizes
from convlora.errors import ConfigError
from convlora.evaluation import check_split
from convlora.output import write_text
from convlora.settings import check_kind
from convlora.training.lock import FILE as LOCK

FILE = "comparison.json"
#: Learning rates that --tune-lr tries, as factors of the default, in this order; of equal scores the first is
#: taken.
FACTORS = (1.0, 3.0, 0.3)
#: Seed of the runs that choose a learning rate; none of the seeds that are reported.
TUNING_SEED = 1_000_000
_EXAMPLES = {
    "methods": "lora,conv-lora",
    "train_sizes": "8,16,all",
    "metrics": "mean_dice_foreground,mean_iou",
}


@dataclass(frozen=True)
class Settings:
    """Options of `convlora compare`.

    Args:
        methods: labels of the rows; see `parse_methods`.
        seeds: runs of each; their seeds are first_seed, first_seed + 1, ...
        train_sizes: numbers of training images; None is all.
        reference: label that the others are compared with.
        metrics: scores in the tables; the first is the one in the pictures.
        split: that is scored.
        tune_lr: whether to choose each method's learning rate on the validation split.
        first_seed: others than 0 confirm with fresh seeds what earlier ones have suggested.
    """

    methods: tuple[str, ...]
    seeds: int
    train_sizes: tuple[int | None, ...]
    reference: str
    metrics: tuple[str, ...]
    split: str = "test"
    tune_lr: bool = False
    first_seed: int = 0

    @property
    def seed_range(self) -> range:
        """All seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def largest(self) -> int | None:
        """The largest of `train_sizes`."""
        sizes = [size for size in self.train_sizes if size is not None]
        return None if len(sizes) < len(self.train_sizes) else max(sizes)


def make_settings(
    methods: str,
    seeds: int = 3,
    train_sizes: str = "all",
    *,
    reference: str | None = None,
    metrics: str = "mean_dice_foreground,image_mean_dice_foreground,mean_iou",
    split: str = "test",
    tune_lr: bool = False,
    first_seed: int = 0,
) -> Settings:
    """Read what the user wrote; arguments as in `Settings`, lists as text with commas.

    Raises:
        ConfigError: an argument is not valid; the data's own limits are checked later.
    """
    texts = {"methods": methods, "train_sizes": train_sizes, "metrics": metrics}
    for name, value in texts.items():
        check_kind(name, value, str, f"text, with commas between several, such as {_EXAMPLES[name]!r}")
    for name, number in {"seeds": seeds, "first_seed": first_seed}.items():
        check_kind(name, number, int, "a whole number")
    check_kind("tune_lr", tune_lr, bool, "True or False")
    labels = [entry.label for entry in parse_methods(methods)]
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"--metrics is {metrics!r}; give different names, such as mean_dice_foreground.")
    chosen = reference or ("lora" if "lora" in labels else labels[0])
    if chosen not in labels:
        raise ConfigError(f"--reference is {chosen}, which is not compared. Give one of {', '.join(labels)}.")
    if seeds < 1:
        raise ConfigError(f"--seeds is {seeds}; give 1 or more. Three show a spread.")
    last, most = first_seed + seeds - 1, TUNING_SEED - 1
    if first_seed < 0 or last > most:
        raise ConfigError(
            f"The seeds are {first_seed} to {last}; --first-seed and --seeds must keep them from 0 to {most}."
        )
    check_split(split)
    sizes = tuple(parse_train_sizes(train_sizes))
    return Settings(tuple(labels), seeds, sizes, chosen, tuple(names), split, tune_lr, first_seed)


#: Keys of `RunConfig` that the runs of a comparison differ in -> what says it instead.
OF_A_RUN = {
    "method": "Write options behind a method's name: --methods lora:rank=8 (in Python methods=).",
    "seed": "Give --first-seed and --seeds (in Python first_seed=, seeds=).",
    "train_images": "Give --train-sizes (in Python train_sizes=).",
}


def refuse_of_a_run(options: Mapping[str, Any]) -> None:
    """Refuse what would be dropped: keys that the runs of a comparison differ in.

    Args:
        options: keys of `RunConfig` that the user gave for all runs.

    Raises:
        ConfigError: one of `OF_A_RUN` is among them; all are listed.
    """
    lines = [
        f"  {key}: got {options[key]!r}, but the runs differ in it. {instead}"
        for key, instead in OF_A_RUN.items()
        if key in options
    ]
    if lines:
        raise ConfigError("These options cannot be shared by all runs of a comparison:\n" + "\n".join(lines))


#: Of these a later call may ask for more, or others: they add runs or change the tables only.
_MAY_GROW = {"methods", "seeds", "first_seed", "train_sizes", "reference", "metrics"}


def record_settings(out: Path, settings: Settings, base: dict[str, Any], fingerprint: str) -> None:
    """Write comparison.json, or check that a comparison that is there can be gone on with.

    Args:
        out: folder of the comparison.
        settings: options of the comparison.
        base: keys of `RunConfig` that all runs share.
        fingerprint: of the data.

    Raises:
        ConfigError: the folder holds other files, or a comparison that was made in another way.
    """
    shared = {k: v for k, v in asdict(settings).items() if k not in _MAY_GROW}
    shared |= {"data fingerprint": fingerprint, **{k: v for k, v in base.items() if k not in {"data", "out"}}}
    content = json.loads(json.dumps({"shared": shared, "settings": asdict(settings)}, default=str))
    file = out / FILE
    if file.is_file():
        _check_same(file, content["shared"], out)
    elif out.exists() and any(path.name != LOCK for path in out.iterdir()):
        raise ConfigError(f"--out {out} holds files that are no comparison. Give a new folder.")
    write_text(file, json.dumps(content, indent=2) + "\n")


def _check_same(file: Path, now: dict[str, Any], out: Path) -> None:
    try:
        before = json.loads(file.read_text(encoding="utf-8"))["shared"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is damaged: {error}. Give another --out.") from error
    different = [
        f"  {key}: {before.get(key)} there, {now.get(key)} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if different:
        raise ConfigError(
            f"The comparison in {out} was made in another way, so its runs cannot stand beside new ones:\n"
            + "\n".join(different)
            + "\nGive the same options to go on with it (methods, seeds and sizes may be added), or another "
            "--out."
        )
