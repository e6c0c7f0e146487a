"""Predict files: one PNG of class ids for each image; a bad image does not stop the others."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import Progress

from convlora.data.images import EXTENSIONS, read_image
from convlora.data.masks import save_mask
from convlora.errors import ConvLoraError, DataError
from convlora.inference.drawing import overlay as draw
from convlora.inference.predictor import Predictor
from convlora.model import foreground_ids


def predict_files(
    predictor: Predictor,
    inputs: Sequence[Path],
    out: Path,
    *,
    overlay: bool = False,
    probabilities: bool = False,
) -> list[str]:
    """Predict images and the images in folders.

    Args:
        predictor: the model.
        inputs: image files and folders (their images are taken, not those of sub-folders).
        out: folder for NAME.png; NAME_overlay.png and NAME_probabilities.npy on request.
        overlay: also draw the masks over the images.
        probabilities: also write (K, H, W) float16.

    Returns:
        One message for each image that could not be predicted.

    Raises:
        DataError: before any work: an input does not exist, a folder holds no image, two images have the
            same stem, or an output would overwrite an input.
    """
    images = find_images(inputs)
    _check_outputs(images, out)
    out.mkdir(parents=True, exist_ok=True)
    failures = []
    with Progress(transient=True) as progress:
        for image in progress.track(images, description="predict"):
            try:
                _predict_file(predictor, image, out, overlay, probabilities)
            except ConvLoraError as error:
                failures.append(str(error))
    print(f"Wrote {len(images) - len(failures)} of {len(images)} masks to {out}.")
    return failures


def find_images(inputs: Sequence[Path]) -> list[Path]:
    """Image files behind the inputs, folders expanded and sorted.

    Raises:
        DataError: an input does not exist or a folder holds no image.
    """
    return [image for path in inputs for image in _expand(path)]


def _expand(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise DataError(f"{path} does not exist. Give image files or folders of images.")
    found = sorted(p for p in path.iterdir() if p.is_file() and p.suffix.lower().lstrip(".") in EXTENSIONS)
    if not found:
        raise DataError(f"{path} holds no image. Readable are: {', '.join(sorted(EXTENSIONS))}.")
    yield from found


def _check_outputs(images: list[Path], out: Path) -> None:
    seen: dict[str, Path] = {}
    for image in images:
        key = image.stem.lower()  # file systems that ignore case would overwrite
        if key in seen:
            raise DataError(
                f"{seen[key]} and {image} would both be written to {out / image.stem}.png. "
                "Rename one of them, or predict them into different folders."
            )
        seen[key] = image
    inputs = {image.resolve() for image in images}
    for image in images:
        if (out / f"{image.stem}.png").resolve() in inputs:
            raise DataError(
                f"The mask of {image} would overwrite an input image. Give another --out than {out}."
            )


def _predict_file(predictor: Predictor, image: Path, out: Path, overlay: bool, probabilities: bool) -> None:
    pixels = read_image(image)
    prediction = predictor.predict(pixels)
    save_mask(out / f"{image.stem}.png", prediction.ids)
    if overlay:
        drawn = foreground_ids(predictor.segmenter.config.classes)
        Image.fromarray(draw(pixels, prediction.ids, drawn)).save(out / f"{image.stem}_overlay.png")
    if probabilities:
        np.save(out / f"{image.stem}_probabilities.npy", prediction.probabilities.numpy().astype(np.float16))
