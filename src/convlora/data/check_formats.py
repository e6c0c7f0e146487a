"""Checks of formats: what a file's format, depth, alpha channel or damaged metadata do to its pixels."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from PIL import Image

from convlora.data import complaints
from convlora.data.formats import NOT_READ, UPPER_BITS
from convlora.data.labels import Label
from convlora.data.report import Problem, shown
from convlora.data.scan import ImageFacts, MaskFacts
from convlora.data.source import error, warning


def check_formats(images: Mapping[Path, ImageFacts], masks: Mapping[Label, MaskFacts]) -> Iterator[Problem]:
    """All that can be said of formats; files that cannot be read are told elsewhere."""
    for image in images.values():
        yield from _check_name("image", image.path)
        yield from _check_told(image.path, image.told)
        yield from _check_depth(image)
        yield from _check_bands(image)
        yield from _check_image_alpha(image)
    for mask in masks.values():
        yield from _check_name("mask", mask.label.path)
        yield from _check_told(mask.label, mask.told)
        yield from _check_lossy(mask)
        yield from _check_alpha(mask)
        yield from _check_bands(mask)
        yield from _check_reverse(mask)
        if mask.deep == UPPER_BITS and not mask.error:
            found = "several channels of 16 bits, of which only the upper 8 are read: ids below 256 become 0"
            fix = "Save the ids as an 8-bit PNG."
            yield error("deep-mask", mask.label, found, "A mask is one channel of 8 bits.", fix)


def _check_name(kind: str, path: Path) -> Iterator[Problem]:
    if path.name.isascii():
        return
    try:
        path.name.encode()
    except UnicodeEncodeError:
        found = f"the name of the {kind} is not UTF-8"
        rule = "Records and reports are text; a name must be one that can be written there."
        fix = f"Rename the file, and its partner too; shown here as {shown(path.name)}."
        yield error("bad-name", path, found, rule, fix)


def _check_told(path: Path | Label, told: Iterable[Warning]) -> Iterator[Problem]:
    listed = list(told)
    if any(complaints.is_large(one) for one in listed):
        limit = Image.MAX_IMAGE_PIXELS or 0
        rule = f"Above {limit / 1e6:.0f} million pixels reading takes much memory; twice that is refused."
        fix = "Fine if the file is your own. Cut it into tiles: it is scaled to the model's input."
        yield warning("large-image", path, "the decoder takes its size for an attack", rule, fix)
    if said := complaints.texts(listed):
        found = f"damaged metadata: {'; '.join(said[:3])}"
        rule = "The pixels are read, but orientation and other metadata may be lost."
        yield warning("damaged-metadata", path, found, rule, "Look at the pair, or save the file again.")


def _check_depth(image: ImageFacts) -> Iterator[Problem]:
    if image.odd and image.size:
        pixels = image.size[0] * image.size[1]
        rule = "Every pixel of an image is a number."
        if image.odd == pixels:
            yield error(
                "bad-pixels",
                image.path,
                "all pixels are NaN or infinite",
                rule,
                "Export it again, or remove it.",
            )
        else:
            found = f"{image.odd} of {pixels} pixels are NaN or infinite; they are read as black"
            yield warning("bad-pixels", image.path, found, rule, "Fill them, or export the file again.")
    if image.deep == UPPER_BITS:
        yield warning("deep-colour", image.path, *NOT_READ["deep-colour"])


def _check_bands(facts: ImageFacts | MaskFacts) -> Iterator[Problem]:
    if not facts.dropped or facts.error:
        return
    bands = "1 more band" if facts.dropped == 1 else f"{facts.dropped} more bands"
    place: Path | Label
    if isinstance(facts, MaskFacts):
        place = facts.label
        found, rule = (
            f"{bands} than are read",
            "A mask is one channel of class ids; ids are not read from others.",
        )
        fix = "Save the ids alone, as an 8-bit PNG."
    else:
        place = facts.path
        found = f"{bands} than are read, and not alpha"
        _, rule, fix = NOT_READ["dropped-bands"]
    yield warning("dropped-bands", place, found, rule, fix)


def _check_image_alpha(image: ImageFacts) -> Iterator[Problem]:
    if image.alpha is not None and not image.error:
        _, rule, fix = NOT_READ["image-alpha"]
        found = f"its alpha channel varies from {image.alpha[0]} to {image.alpha[1]}, and is not read"
        yield warning("image-alpha", image.path, found, rule, fix)


def _check_reverse(mask: MaskFacts) -> Iterator[Problem]:
    """A viewer shows the inverse of what is learnt."""
    if not mask.reverse or mask.error:
        return
    held = ", ".join(f"{value} x {pixels}" for value, pixels in [*mask.counts.items()][:4])
    more = ", ..." if len(mask.counts) > 4 else ""
    found = (
        "its TIFF tag says that 0 is white (PhotometricInterpretation 0, WhiteIsZero, an inverting LUT); "
        f"it was read as stored, not as a viewer shows them: {held}{more} pixels"
    )
    rule = "Masks are numbers, not pictures."
    fix = "If these numbers are right, all is well, else invert them; an 8-bit PNG of them leaves no doubt."
    yield warning("white-is-zero", mask.label, found, rule, fix)


def _check_lossy(mask: MaskFacts) -> Iterator[Problem]:
    if not mask.lossy or (mask.error and mask.error.code == "unreadable"):
        return
    ending = mask.label.suffix.lower()
    usual = ending in {".jpg", ".jpeg"} if mask.lossy == "JPEG" else ending == ".webp"
    under = "" if usual or mask.lossy.startswith("TIFF") else f" under the ending {mask.label.suffix}"
    held = f"{len(mask.counts)} different values" if not mask.error else "colours"
    found = f"{mask.lossy}{under} with {held}"
    rule = (
        "JPEG changes the values of a mask."
        if mask.lossy == "JPEG"
        else "Lossy formats change a mask's values."
    )
    fix = (
        "Save masks as PNG, from the original labels; where there are none, threshold those of two classes "
        "at 128 (docs/rearrange.md has the command)."
    )
    if mask.error or len(mask.counts) > 2:
        yield error("jpeg-mask", mask.label, found, rule, fix)
    else:
        yield warning("jpeg-mask", mask.label, found, rule, fix)


def _check_alpha(mask: MaskFacts) -> Iterator[Problem]:
    """Ids are read from the other channels; where those say nothing, the mask is what alpha shows."""
    if mask.alpha is None or mask.error:
        return
    found = f"its alpha channel varies from {mask.alpha[0]} to {mask.alpha[1]}"
    rule = "Ids are read from the colour channels; alpha is dropped."
    if len(mask.counts) == 1:
        held = next(iter(mask.counts))
        found += f", and its colour channels hold {held} everywhere: the mask seems to be in alpha"
        yield error(
            "mask-alpha", mask.label, found, rule, "Save the alpha channel as the mask, as an 8-bit PNG."
        )
    else:
        fix = "Save the mask with one channel; if the mask is in alpha, save that as ids."
        yield warning("mask-alpha", mask.label, found, rule, fix)
