"""Predict files: one PNG of class ids for each image; a bad image does not stop the others."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from convlora.data.images import open_image, pixels_of
from convlora.data.masks import save_mask
from convlora.data.progress import show_progress
from convlora.errors import ConvLoraError, DataError, DisagreementError, WriteError
from convlora.inference.arrays import NpyRows
from convlora.inference.drawing import overlay as draw
from convlora.inference.geotiff import check_georeference, save_geotiff
from convlora.inference.inputs import parts_not_read
from convlora.inference.jobs import Existing, Job, plan_jobs
from convlora.inference.notes import is_large, size_note, system_note, tile_note, unread_note
from convlora.inference.pipeline import one_by_one, overlapped
from convlora.inference.predictor import Predictor
from convlora.inference.tiled import forget
from convlora.model import foreground_ids
from convlora.output import write_whole


@dataclass
class Outcome:
    """What became of the images.

    Attributes:
        written: images whose files were all written.
        skipped: images with nothing left to write.
        failures: image and message of each that could not be predicted.
        stopped: why the work ended early, or "": the images after that were not tried.
        interrupted: whether that was Ctrl-C.
        unread: by key of `convlora.data.formats.NOT_READ`, images of which a part was not read.
        scaled: images that were scaled as a whole though much larger than those of the training, with (H, W).
        large_tiles: what is told of tiles much larger than the images of the training, or "".
        no_system: images whose GeoTIFF has a place on the map but no coordinate system.
    """

    written: int = 0
    skipped: int = 0
    failures: list[tuple[Path, str]] = field(default_factory=list)
    stopped: str = ""
    interrupted: bool = False
    unread: dict[str, list[Path]] = field(default_factory=dict)
    scaled: list[tuple[Path, tuple[int, int]]] = field(default_factory=list)
    large_tiles: str = ""
    no_system: list[Path] = field(default_factory=list)


def predict_files(
    predictor: Predictor,
    inputs: Sequence[Path],
    out: Path,
    *,
    overlay: bool = False,
    probabilities: bool = False,
    geotiff: bool = False,
    existing: Existing = "refuse",
) -> Outcome:
    """Predict images and the images in folders.

    Writes, for each image, NAME.png: (H, W) uint8 class ids as a palette PNG, at the image's size as a viewer
    shows it (EXIF turn applied). On request NAME_overlay.png, (H, W, 3) uint8, and NAME_probabilities.npy,
    (K, H, W) float16 that sum to one over the K classes, and NAME.tif, the class ids with the georeference of
    the image, if it has one; else that image fails. Each file appears whole or not at all. Memory does
    not grow with the number of images.

    Args:
        predictor: the model.
        inputs: see `plan_jobs`, as all that follow.
        out: folder for the results.
        overlay: also write pictures.
        probabilities: also write probabilities.
        geotiff: also write GeoTIFFs.
        existing: what to do with outputs that are there.

    Raises:
        DataError, ConfigError: before any work; see `plan_jobs`.
    """
    jobs = plan_jobs(
        inputs, out, overlay=overlay, probabilities=probabilities, geotiff=geotiff, existing=existing
    )
    return run_jobs(predictor, jobs)


def run_jobs(predictor: Predictor, jobs: Sequence[Job]) -> Outcome:
    """Predict and write; what is complete is kept where a full disk, a wrong engine or Ctrl-C ends the work.

    The next image is read and the last result is written while the model computes. With tiles, which are for
    images of which one fills the memory, and which keep the model busy for long, one image is done after the
    other.
    """
    outcome = Outcome()
    with show_progress(len(jobs), "predicting", "predicted {} of {} images") as advance:

        def finish(job: Job, result: _Result | ConvLoraError | None) -> None:
            _finish(job, result, outcome)
            _note(job, result, predictor, outcome)
            advance()

        try:
            steps = overlapped if predictor.tiles is None else one_by_one
            steps(jobs, partial(_read, outcome), partial(_compute, predictor), finish)
        except (WriteError, DisagreementError) as error:
            outcome.stopped = str(error)
        except KeyboardInterrupt:
            outcome.stopped, outcome.interrupted = "Stopped.", True
    for note in _notes(outcome, predictor):
        print(f"warning: {note}", file=sys.stderr)
    return outcome


@dataclass
class _Result:
    """What is written for an image; None is not wanted, or is there already."""

    ids: np.ndarray
    overlay: np.ndarray | None  # (H, W, 3) uint8
    probabilities: np.ndarray | None  # (K, H, W) float16


def _note(job: Job, result: _Result | ConvLoraError | None, predictor: Predictor, outcome: Outcome) -> None:
    """Keep what is to be told of an image."""
    if not isinstance(result, _Result):
        return
    if job.geotiff is not None and job.place is not None and not job.place.crs:
        outcome.no_system.append(job.image)
    size = (result.ids.shape[0], result.ids.shape[1])
    known = predictor.segmenter.largest_image
    outcome.large_tiles = outcome.large_tiles or tile_note(predictor.tiles, size, known)
    if is_large(max(size), known) and not predictor.cuts(size):
        outcome.scaled.append((job.image, size))


def _notes(outcome: Outcome, predictor: Predictor) -> Iterator[str]:
    """What is told once of all images."""
    for code, images in outcome.unread.items():
        yield unread_note(code, images)
    known = predictor.segmenter.largest_image
    if outcome.scaled and known is not None:
        yield size_note([image for image, _ in outcome.scaled], outcome.scaled[0][1], known)
    if outcome.no_system:
        yield system_note(outcome.no_system)
    if outcome.large_tiles:
        yield outcome.large_tiles


def _read(outcome: Outcome, job: Job) -> np.ndarray | ConvLoraError | None:
    if not job.outputs:
        return None
    try:
        image = open_image(job.image)
        for code in parts_not_read(job.image, image):
            outcome.unread.setdefault(code, []).append(job.image)
        if job.geotiff is not None:
            check_georeference(job.image, image, job.place)
        return pixels_of(image)
    except ConvLoraError as error:
        return error


def _compute(
    predictor: Predictor, job: Job, pixels: np.ndarray | ConvLoraError | None
) -> _Result | ConvLoraError | None:
    if not isinstance(pixels, np.ndarray):
        return pixels
    try:
        return _predict(predictor, job, pixels)
    except (WriteError, DisagreementError):
        raise  # no other image would fare better
    except ConvLoraError as error:
        return error


def _predict(predictor: Predictor, job: Job, pixels: np.ndarray) -> _Result:
    probabilities = None
    if not predictor.cuts((pixels.shape[0], pixels.shape[1])):
        prediction = predictor.predict(pixels)
        ids = prediction.ids
        if job.probabilities is not None:
            probabilities = prediction.probabilities.numpy().astype(np.float16)
    elif job.probabilities is None:
        ids = predictor.predict_rows(pixels, forget)
    else:
        ids = _predict_into(predictor, pixels, job.probabilities)
    drawn = foreground_ids(predictor.segmenter.config.classes)
    return _Result(ids, None if job.overlay is None else draw(pixels, ids, drawn), probabilities)


def _predict_into(predictor: Predictor, pixels: np.ndarray, file: Path) -> np.ndarray:
    """Write the probabilities while they are computed, because they would fill the memory."""
    found: list[np.ndarray] = []

    def write(part: Path) -> None:
        shape = (predictor.segmenter.head.num_classes, *pixels.shape[:2])
        with NpyRows(part, shape) as opened:
            found.append(predictor.predict_rows(pixels, lambda top, rows: opened.write(top, rows.numpy())))

    write_whole(file, write)
    return found[0]


def _finish(job: Job, result: _Result | ConvLoraError | None, outcome: Outcome) -> None:
    if result is None:
        outcome.skipped += 1
    elif isinstance(result, ConvLoraError):
        outcome.failures.append((job.image, str(result)))
    else:
        try:
            _write(job, result)
        except DataError as error:  # its own name is at fault; where nothing can be written, all would fail
            outcome.failures.append((job.image, str(error)))
        else:
            outcome.written += 1


def _write(job: Job, result: _Result) -> None:
    ids, overlay, probabilities = result.ids, result.overlay, result.probabilities
    if job.overlay is not None and overlay is not None:
        picture = Image.fromarray(overlay)
        # a quarter of the time of the default level for a file that is an eighth larger
        write_whole(job.overlay, lambda part: picture.save(part, format="PNG", compress_level=1))
    if job.probabilities is not None and probabilities is not None:
        write_whole(job.probabilities, lambda part: _save_array(part, probabilities))
    if job.geotiff is not None:
        assert job.place is not None  # else reading the image has failed
        write_whole(job.geotiff, partial(save_geotiff, ids=ids, place=job.place))
    if job.mask is not None:
        write_whole(job.mask, lambda part: save_mask(part, ids))


def _save_array(file: Path, values: np.ndarray) -> None:
    with file.open("wb") as opened:  # np.save would add .npy to a name
        np.save(opened, values)
