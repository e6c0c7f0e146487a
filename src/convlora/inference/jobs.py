"""Which files a prediction reads and writes; all of it is decided, and checked, before any work."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from convlora.data.images import EXTENSIONS, belongs_to_map, is_image
from convlora.errors import ConfigError, DataError
from convlora.inference.geotiff import Georeference, check_rasterio, read_georeferences
from convlora.output import check_folder, check_new, check_not_inputs, same_name_key

#: What to do where an output is there already.
Existing = Literal["refuse", "skip", "overwrite"]


@dataclass(frozen=True)
class Job:
    """One image and the files to write for it; None is not wanted, or is there already."""

    image: Path
    mask: Path | None
    overlay: Path | None = None
    probabilities: Path | None = None
    geotiff: Path | None = None
    place: Georeference | None = None  # of the image, where a GeoTIFF is wanted and it has one

    @property
    def outputs(self) -> list[Path]:
        """The files to write."""
        return [
            file for file in (self.mask, self.overlay, self.probabilities, self.geotiff) if file is not None
        ]


def plan_jobs(
    inputs: Sequence[Path],
    out: Path,
    *,
    overlay: bool = False,
    probabilities: bool = False,
    geotiff: bool = False,
    existing: Existing = "refuse",
) -> list[Job]:
    """Pair every image with its outputs.

    Args:
        inputs: image files and folders (their images are taken, not those of sub-folders).
        out: folder for NAME.png; NAME_overlay.png, NAME_probabilities.npy and NAME.tif on request.
        overlay: also a picture of the mask over the image.
        probabilities: also the class probabilities.
        geotiff: also the mask with the georeference of the image.
        existing: 'refuse' outputs that are there; 'skip' them, to go on where a prediction was stopped; or
            'overwrite' them. Inputs are never overwritten.

    Returns:
        Jobs in the order of the inputs; those with nothing to write are left in, with no outputs.

    Raises:
        DataError: an input does not exist, a folder holds no image, or two outputs would have one name.
        ConfigError: `out` cannot be written into or is a folder of inputs, an output is an input or exists,
            or `existing` is none of the three.
        MissingExtraError: `geotiff` is asked for and rasterio is not installed.
    """
    if existing not in get_args(Existing):
        raise ConfigError(f"existing is {existing!r}; it must be one of {', '.join(get_args(Existing))}.")
    if geotiff:
        check_rasterio()
    images = find_images(inputs)
    check_folder(out, "--out")
    if any(path.is_dir() and path.resolve() == out.resolve() for path in inputs):
        raise ConfigError(
            f"--out {out} is a folder of inputs; the masks would be taken for images next time."
        )
    jobs = [_job(image, out, overlay, probabilities, geotiff) for image in images]
    _check_names(jobs)
    check_not_inputs((file for job in jobs for file in job.outputs), images, "--out")
    if existing == "skip":
        jobs = [_without_existing(job) for job in jobs]
    if existing == "refuse":
        fix = "Give another --out, --skip-existing to write the others only, or --overwrite."
        check_new((file for job in jobs for file in job.outputs), fix)
    return _placed(jobs) if geotiff else jobs


def find_images(inputs: Sequence[Path]) -> list[Path]:
    """Image files behind the inputs, folders expanded and sorted; each file once.

    Raises:
        DataError: an input does not exist or a folder holds no image.
    """
    found = {Path(image).absolute(): image for path in inputs for image in _expand(path)}
    return list(found.values())


def left_out(inputs: Sequence[Path]) -> list[Path]:
    """Files in the folders among the inputs that do not end like images, nor like what lies beside maps."""
    folders = [path for path in inputs if path.is_dir()]
    files = [p for folder in folders for p in sorted(folder.iterdir()) if not p.is_dir()]
    return [p for p in files if not (is_image(p) or belongs_to_map(p) or p.name.startswith("."))]


def _expand(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from _images_in(path)
    elif path.exists():
        yield path
    elif any(sign in str(path) for sign in "*?["):
        raise DataError(
            f"No file matches {path}: the shell handed the pattern over as it is. "
            "Check the folder and the ending, or give the folder."
        )
    else:
        raise DataError(f"{path} does not exist. Give image files or folders of images.")


def _images_in(folder: Path) -> list[Path]:
    entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    found = [p for p in entries if is_image(p) and not p.is_dir()]
    if found:
        return found
    readable = f"Readable are: {', '.join(sorted(EXTENSIONS))}."
    folders = [p.name for p in entries if p.is_dir()]
    if folders:
        raise DataError(
            f"{folder} holds no image, only folders such as {', '.join(folders[:5])}, which are not "
            f"searched. Give the folder with the images itself, for example {folder / folders[0]}. {readable}"
        )
    raise DataError(f"{folder} holds no image. {readable}")


def _job(image: Path, out: Path, overlay: bool, probabilities: bool, geotiff: bool) -> Job:
    return Job(
        image,
        out / f"{image.stem}.png",
        out / f"{image.stem}_overlay.png" if overlay else None,
        out / f"{image.stem}_probabilities.npy" if probabilities else None,
        out / f"{image.stem}.tif" if geotiff else None,
    )


def _placed(jobs: list[Job]) -> list[Job]:
    places = read_georeferences(job.image for job in jobs if job.geotiff is not None)
    return [replace(job, place=places.get(job.image)) for job in jobs]


def _check_names(jobs: list[Job]) -> None:
    """Refuse outputs of one name, also on file systems that ignore case."""
    seen: dict[str, Path] = {}
    for job in jobs:
        for file in job.outputs:
            other = seen.setdefault(same_name_key(file), job.image)
            if other != job.image:
                raise DataError(
                    f"{other} and {job.image} would both be written to {file}. Rename one of them, "
                    "or predict them into different folders."
                )


def _without_existing(job: Job) -> Job:
    mask, overlay, probabilities, geotiff = (
        None if file is None or os.path.exists(file) else file  # noqa: PTH110  # Path's fails at long names
        for file in (job.mask, job.overlay, job.probabilities, job.geotiff)
    )
    return Job(job.image, mask, overlay, probabilities, geotiff)
