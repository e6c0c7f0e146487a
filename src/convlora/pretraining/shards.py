"""Scenes generated ahead: folders of memory-mapped arrays, written in parallel."""

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from convlora.errors import ConfigError, DataError
from convlora.pretraining.scenes import Scene, check_families, draw_family, generate_scene
from convlora.pretraining.textures import TextureBank
from convlora.weight_files import read_json

_FIELDS = ("image", "instances", "coarse")
_RECIPE = "recipe.json"


@dataclass(frozen=True)
class _Recipe:
    """What must agree for shards to belong together."""

    seed: int
    size: int
    shard_size: int
    photos: bool
    families: tuple[str, ...]  # all of them if none is named


def write_shards(
    out_dir: str | Path,
    count: int,
    shard_size: int = 2000,
    size: int = 256,
    seed: int = 0,
    workers: int = 1,
    photos: bool = True,
    families: Sequence[str] = (),
) -> list[Path]:
    """Generate scenes into `out_dir/shard-00000`, ...; complete shards that exist are kept.

    Scene i depends on (seed, i) alone, so the arrays are the same for any number of workers. A shard appears
    under its name only when it is complete.

    Args:
        out_dir: folder, made if missing.
        count: scenes in total.
        shard_size: scenes in a shard; the last one may hold fewer.
        size: side of the scenes in pixels.
        seed: start of the random numbers.
        workers: processes.
        photos: texture the scenes with the photographs of scikit-image as well.
        families: kinds of scenes, of `scenes.FAMILIES`; all of them if none is named.

    Returns:
        The folders of all shards, in order.

    Raises:
        ConfigError: a number is not positive, a family unknown, or `out_dir` holds shards of another recipe.
        MissingExtraError: photographs are asked for and scikit-image is not installed.
    """
    for name, value in (("count", count), ("shard_size", shard_size), ("workers", workers)):
        if value < 1:
            raise ConfigError(f"{name}: got {value}; the rule is 1 or more")
    check_families(families)
    out, recipe = Path(out_dir), _Recipe(seed, size, shard_size, photos, tuple(families))
    out.mkdir(parents=True, exist_ok=True)
    _bank(photos, seed)  # missing photographs show here and not in a worker
    _claim(out, recipe)
    jobs = [
        (_shard_path(out, number), number * shard_size, min(shard_size, count - number * shard_size))
        for number in range(-(-count // shard_size))
    ]
    todo = [job for job in jobs if _rows(job[0]) < job[2]]
    _run(todo, workers, recipe)
    return [job[0] for job in jobs]


def _run(jobs: list[tuple[Path, int, int]], workers: int, recipe: _Recipe) -> None:
    """Write shards given as (folder, first scene, number of scenes)."""
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            _write_shard(*job, recipe)
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(_write_shard, *job, recipe) for job in jobs]:
            future.result()


def _shard_path(out: Path, number: int) -> Path:
    return out / f"shard-{number:05d}"


def _claim(out: Path, recipe: _Recipe) -> None:
    file = out / _RECIPE
    if file.exists():
        # files of before had all families
        found = {"families": [], **read_json(file, "Delete the folder, and make the scenes again.")}
        asked = json.loads(json.dumps(asdict(recipe)))
        if found != asked:
            raise ConfigError(
                f"{file} says {found}, but {asked} was asked for.\nUse the same settings or another folder."
            )
        return
    part = file.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(asdict(recipe), indent=2) + "\n", encoding="utf-8")
    part.replace(file)


def _rows(shard: Path) -> int:
    if not shard.is_dir():
        return 0
    return int(np.load(shard / "image.npy", mmap_mode="r").shape[0])


@lru_cache(maxsize=1)
def _bank(photos: bool, seed: int) -> TextureBank:
    return TextureBank(photos=photos, seed=seed)


def _write_shard(target: Path, first: int, rows: int, recipe: _Recipe) -> None:
    part = target.with_name(f".{target.name}.{os.getpid()}")
    part.mkdir()
    try:
        maps = {
            field: open_memmap(
                part / f"{field}.npy",
                mode="w+",
                dtype=np.uint8,
                shape=(rows, recipe.size, recipe.size) + ((3,) if field == "image" else ()),
            )
            for field in _FIELDS
        }
        textures = _bank(recipe.photos, recipe.seed)
        for row in range(rows):
            rng = np.random.default_rng((recipe.seed, first + row))
            scene = generate_scene(rng, recipe.size, textures, draw_family(rng, recipe.families))
            for field in _FIELDS:
                maps[field][row] = getattr(scene, field)
        for array in maps.values():
            array.flush()
        if target.exists():  # a shorter last shard of an earlier, smaller count
            shutil.rmtree(target)
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


class ShardReader:
    """Random access to all complete shards of a folder, memory-mapped.

    Copies for worker processes carry only the path, and each opens the files itself.

    Args:
        folder: what `write_shards` filled, or is filling: shards that appear later are not seen.

    Raises:
        DataError: the folder holds no complete shard.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._shards = sorted(self.folder.glob("shard-*"))
        if not self._shards:
            raise DataError(f"{self.folder} holds no shard-* folder. Generate scenes with write_shards first")
        self._ends = np.cumsum([_rows(shard) for shard in self._shards])
        self._maps: dict[int, tuple[np.ndarray, ...]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Scene:
        """Scene of views into the files; do not write to them.

        Raises:
            IndexError: index outside -len..len - 1.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        index %= len(self)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        row = index - (int(self._ends[shard - 1]) if shard else 0)
        if shard not in self._maps:
            self._maps[shard] = tuple(
                np.load(self._shards[shard] / f"{field}.npy", mmap_mode="r") for field in _FIELDS
            )
        return Scene(*(array[row] for array in self._maps[shard]))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}
