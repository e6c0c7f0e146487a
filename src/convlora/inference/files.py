"""Predict files: one PNG of class ids for each image; a bad image does not stop the others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from convlora.data.images import read_image
from convlora.data.masks import save_mask
from convlora.errors import ConvLoraError
from convlora.inference.drawing import overlay as draw
from convlora.inference.jobs import Existing, Job, plan_jobs
from convlora.inference.predictor import Predictor
from convlora.model import foreground_ids
from convlora.output import WriteError, write_whole


@dataclass
class Outcome:
    """What became of the images.

    Attributes:
        written: images whose files were all written.
        skipped: images with nothing left to write.
        failures: image and message of each that could not be predicted.
        stopped: why the work ended early, or "": the images after that were not tried.
    """

    written: int = 0
    skipped: int = 0
    failures: list[tuple[Path, str]] = field(default_factory=list)
    stopped: str = ""
    interrupted: bool = False


def predict_files(
    predictor: Predictor,
    inputs: Sequence[Path],
    out: Path,
    *,
    overlay: bool = False,
    probabilities: bool = False,
    existing: Existing = "refuse",
) -> Outcome:
    """Predict images and the images in folders.

    Writes, for each image, NAME.png: (H, W) uint8 class ids as a palette PNG, at the image's size as a viewer
    shows it (EXIF turn applied). On request NAME_overlay.png, (H, W, 3) uint8, and NAME_probabilities.npy,
    (K, H, W) float16 that sum to one over the K classes. Each file appears whole or not at all. Memory does
    not grow with the number of images.

    Args:
        predictor: the model.
        inputs: see `plan_jobs`, as all that follow.
        out: folder for the results.
        overlay: also write pictures.
        probabilities: also write probabilities.
        existing: what to do with outputs that are there.

    Raises:
        DataError, ConfigError: before any work; see `plan_jobs`.
    """
    jobs = plan_jobs(inputs, out, overlay=overlay, probabilities=probabilities, existing=existing)
    return run_jobs(predictor, jobs)


def progress_bar() -> Progress:
    """Bar on standard error, so that standard output is the result alone; none where that is no terminal."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def run_jobs(predictor: Predictor, jobs: Sequence[Job]) -> Outcome:
    """Predict and write; a full disk or Ctrl-C ends the work with what is complete kept."""
    outcome = Outcome()
    with progress_bar() as progress:
        try:
            for job in progress.track(jobs, description="predict"):
                _run_job(predictor, job, outcome)
        except WriteError as error:
            outcome.stopped = str(error)
        except KeyboardInterrupt:
            outcome.stopped, outcome.interrupted = "Stopped.", True
    return outcome


def _run_job(predictor: Predictor, job: Job, outcome: Outcome) -> None:
    if not job.outputs:
        outcome.skipped += 1
        return
    try:
        _predict_file(predictor, job)
        outcome.written += 1
    except WriteError:
        raise
    except ConvLoraError as error:
        outcome.failures.append((job.image, str(error)))


def _predict_file(predictor: Predictor, job: Job) -> None:
    pixels = read_image(job.image)
    prediction = predictor.predict(pixels)
    if job.overlay is not None:
        drawn = foreground_ids(predictor.segmenter.config.classes)
        picture = Image.fromarray(draw(pixels, prediction.ids, drawn))
        write_whole(job.overlay, lambda part: picture.save(part, format="PNG"))
    if job.probabilities is not None:
        values = prediction.probabilities.numpy().astype(np.float16)
        write_whole(job.probabilities, lambda part: _save_array(part, values))
    if job.mask is not None:
        write_whole(job.mask, lambda part: save_mask(part, prediction.ids))


def _save_array(file: Path, values: np.ndarray) -> None:
    with file.open("wb") as opened:  # np.save would add .npy to a name
        np.save(opened, values)
