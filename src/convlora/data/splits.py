"""The splits that a run was trained with: recorded in split.json, and kept to ever after."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convlora.data.labels import read_label
from convlora.data.layout import DataSet, Pair
from convlora.data.report import Problem
from convlora.data.source import error, warning
from convlora.errors import ConfigError, DataError
from convlora.run_files import RECORD

OTHER_DATA = "other-data"  # code of the warning that the run's splits do not apply
_UNUSED = "unused"  # training images that the run left out; to resume it they are drawn again
_LENGTH = 16  # hexadecimal digits of a recorded hash
_TILE = re.compile(r"_\d{5}_\d{5}$")  # end of the name of a tile that `convert --tile` has cut
_NAMED = 8


@dataclass(frozen=True)
class Record:
    """Names and hashes of the images of each split of a run.

    Args:
        file: split.json.
        splits: split -> name -> start of the image's hash; '' where an old record has none.
    """

    file: Path
    splits: dict[str, dict[str, str]]


def limit_training(dataset: DataSet, count: int | None, seed: int) -> DataSet:
    """Keep `count` training images, for curves over their number.

    Which ones depends on the seed and their names alone, and of two counts the smaller set is part of the
    larger one. The shares of the classes are those of the kept images; their masks are read for it.

    Raises:
        ConfigError: there are fewer.
    """
    pairs = dataset.splits["train"]
    if count is None:
        return dataset
    if count > len(pairs):
        raise ConfigError(f"train_images is {count}, but there are {len(pairs)} training images.")
    kept = set(sorted((pair.stem for pair in pairs), key=lambda stem: _draw(seed, stem))[:count])
    splits = {**dataset.splits, "train": [pair for pair in pairs if pair.stem in kept]}
    left_out = tuple(pair for pair in pairs if pair.stem not in kept)
    shares = _shares(splits["train"], dataset)
    return dataclasses.replace(dataset, splits=splits, unused=left_out, shares=shares)


def lost_classes(whole: DataSet, part: DataSet) -> Iterator[str]:
    """A warning of the classes that no image which `limit_training` kept holds; the check saw all images."""
    lost = [name for name, share in whole.shares.items() if share > 0 and not part.shares[name]]
    if lost:
        yield (
            f"train_images: none of the {len(part.splits['train'])} training images that are kept, of "
            f"{len(whole.splits['train'])}, holds {', '.join(map(repr, lost))}. A class without pixels is "
            "not learnt. Raise train_images, or draw others with another seed."
        )


def _shares(pairs: Sequence[Pair], dataset: DataSet) -> dict[str, float]:
    """Share of each class in the labelled pixels."""
    counts = np.zeros(256, np.int64)
    for pair in pairs:
        counts += np.bincount(read_label(pair.mask, dataset.encoding).ravel(), minlength=256)
    counts = counts[: len(dataset.classes)]
    return dict(zip(dataset.classes, (counts / max(1, counts.sum())).tolist(), strict=True))


def _draw(seed: int, stem: str) -> str:
    return hashlib.sha256(f"{seed} {stem}".encode()).hexdigest()


def record_splits(dataset: DataSet) -> str:
    """Text of split.json: of each split, the names of its images with the start of their SHA-256."""
    splits = dataset.splits | ({_UNUSED: list(dataset.unused)} if dataset.unused else {})
    content = {
        split: {pair.stem: dataset.digests[pair.image][:_LENGTH] for pair in pairs}
        for split, pairs in splits.items()
    }
    return json.dumps(content, indent=2) + "\n"


def read_record(folder: Path) -> Record | None:
    """The record of a run folder, or of the run folder that an adapter folder is in; None without one.

    Raises:
        DataError: the file is damaged.
    """
    places = (folder, folder.resolve().parent)  # the parent of '.' would be '.'
    file = next((place / RECORD for place in places if (place / RECORD).is_file()), None)
    if file is None:
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        splits = {
            str(split): _digests(names) if isinstance(names, dict) else dict.fromkeys(map(str, names), "")
            for split, names in content.items()
        }
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as problem:
        raise DataError(
            f"{file} is damaged: {problem}. It holds the names of the images of each split."
        ) from problem
    return Record(file, splits)


def _digests(names: dict[str, object]) -> dict[str, str]:
    for name, digest in names.items():
        if not isinstance(digest, str):
            raise TypeError(f"the hash of {name} is {digest!r}")
    return {name: str(digest) for name, digest in names.items()}


def follow_record(
    pairs: Sequence[Pair], record: Record, digests: Mapping[Path, str]
) -> tuple[dict[str, list[Pair]] | None, list[Problem]]:
    """Split pairs as a run did: by name, renamed images by their content, and scenes by names of their tiles.

    Returns:
        The splits, or None where the data has no image of the record; and what has changed.
    """
    by_name = {name: split for split, names in record.splits.items() for name in names}
    by_digest = {d: split for split, names in record.splits.items() for d in names.values() if d}
    splits: dict[str, list[Pair]] = {split: [] for split in record.splits if split != _UNUSED}
    by_scene = _scenes(record)
    new: list[Pair] = []
    scenes: list[Pair] = []
    for pair in pairs:
        # content first: a training image under the name of a test image is still a training image
        split = by_digest.get(digests[pair.image][:_LENGTH]) or by_name.get(pair.stem)
        if split is None and (split := by_scene.get(pair.stem)):
            scenes.append(pair)
        if split is None:
            new.append(pair)
        else:
            splits["train" if split == _UNUSED else split].append(pair)
    if not any(splits.values()):
        found = f"no image is one of those that {record.file} lists: this is other data than the run's"
        rule = "Data without split folders is split by a seed, and only a part of it is used."
        fix = "To score all of it, move it to test/images and test/masks."
        return None, [warning(OTHER_DATA, "images", found, rule, fix)]
    told = [_tell_scenes(scenes, splits, record)] if scenes else []
    return splits, told + list(_tell_changes(splits, new, scenes, record, digests))


def check_unseen(dataset: DataSet, split: str, record: Record) -> Iterator[Problem]:
    """Images of a split to be scored that the run was trained on, told by their content.

    Those of which it had tiles have another content; their names are no proof, so they are a warning.
    """
    if split == "train":
        return
    names = {d: name for name, d in record.splits.get("train", {}).items() if d}
    seen = [p for p in dataset.splits.get(split, []) if dataset.digests[p.image][:_LENGTH] in names]
    if seen:
        found = (
            f"{len(seen)} images of the split '{split}' are training images of the run, first {seen[0].image}"
        )
        rule = f"The run was trained on what {record.file} lists; scores on it would be too good."
        yield error("trained-on", split, found, rule, "Remove them, or score the split 'train'.")
    # a scene of this split too has but a common number for its name, such as 001 in every split
    trained = {_TILE.sub("", name) for name in record.splits.get("train", {}) if _TILE.search(name)}
    trained -= {_TILE.sub("", name) for name in record.splits.get(split, {})}
    if scenes := [p.stem for p in dataset.splits.get(split, []) if p.stem in trained]:
        found = (
            f"{len(scenes)} images of the split '{split}' have the names of scenes whose tiles the run was "
            f"trained on: {_list(scenes)}"
        )
        rule = f"If they are these scenes ({record.file} lists the tiles), scores on them are too good."
        fix = "Remove them then; if they are others under the same names, all is well."
        yield warning("trained-on-tiles", split, found, rule, fix)


def _scenes(record: Record) -> dict[str, str]:
    """Scene -> split of its tiles; that of the training if it has some in several."""
    found: dict[str, str] = {}
    for split in sorted(record.splits, key=lambda name: name != "train"):
        for name in record.splits[split]:
            if _TILE.search(name):
                found.setdefault(_TILE.sub("", name), split)
    return found


def _tell_scenes(scenes: Sequence[Pair], splits: Mapping[str, Sequence[Pair]], record: Record) -> Problem:
    training = {pair.stem for pair in splits.get("train", ())}
    trained = [pair.stem for pair in scenes if pair.stem in training]
    found = f"{len(scenes)} images are scenes, by their names, of which the run has tiles"
    if trained:
        found += f"; {len(trained)} of them are training images: {_list(trained)}"
    rule = f"A scene is in the split of its tiles ({record.file})."
    fix = "If they are others under the same names, move them to test/images and test/masks."
    return warning("scenes-of-tiles", "images", found, rule, fix)


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _tell_changes(
    splits: Mapping[str, Sequence[Pair]],
    new: Sequence[Pair],
    scenes: Sequence[Pair],
    record: Record,
    digests: Mapping[Path, str],
) -> Iterator[Problem]:
    rule = f"The splits are those of the run ({record.file})."
    if new:
        found = f"{len(new)} images have come since the run, first {new[0].image.name}; they are in no split"
        yield warning("new-images", "images", found, rule, "Train anew to use them.")
    count = sum(len(names) for names in record.splits.values())
    whole = {pair.stem for pair in scenes}
    there = sum(_TILE.sub("", name) in whole for names in record.splits.values() for name in names)
    gone = count - there - sum(len(pairs) for pairs in splits.values()) + len(scenes)
    if gone > 0:
        found = f"{gone} of the {count} images of the run are gone"
        yield warning("missing-images", "images", found, rule, "Scores are of those that are left.")
    known = {d for names in record.splits.values() for d in names.values()}
    changed = [p for pairs in splits.values() for p in pairs if digests[p.image][:_LENGTH] not in known]
    changed = [pair for pair in changed if pair.stem not in whole]
    if changed and "" not in known:
        found = f"{len(changed)} images are not the files they were in the run, first {changed[0].image.name}"
        yield warning("changed-images", "images", found, rule, "Their names decide the split.")
