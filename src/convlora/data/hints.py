"""What a folder or file may be meant for, if its name is another than expected. Only told, never acted on."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from convlora.data.images import holds_images

_FOLDERS = {
    "images": "image images img imgs im ims jpegimages picture pictures photo photos rgb input inputs x "
    "frames leftimg8bit originals tiles sat",
    "masks": "mask masks msk label labels lbl annotation annotations ann anno gt gts ground_truth "
    "groundtruth ground-truth segmentationclass segmentation segmentations segmentation_masks "
    "seg segs target targets truth y gtfine matte mattes labelstrain png_masks",
}
#: What exports put before or after the name of an image, or of its mask.
_WORDS = (
    "mask|masks|gt|groundtruth|ground_truth|label|labels|labelids|labeltrainids|trainids|seg|segm|"
    "segmentation|annotation|annotations|ann|anno|gtfine|gtcoarse|matte|target|truth|manual1|image|images|img|imgs|im|rgb|"
    "photo|sat|leftimg8bit|color|colour|instanceids|png|jpg|jpeg|bmp|tif|tiff|webp"
)
_AFFIX = re.compile(rf"[ ._-]+({_WORDS})$|^({_WORDS})([ ._-]+|(?=\d))")


def meant_folder(parent: Path, wanted: str) -> str:
    """A sentence on the folder in `parent` that seems to be meant for 'images' or 'masks'; '' if none."""
    inside = sorted(p for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
    found = [p.name for p in inside if means(p.name, wanted) and p.name != wanted and holds_images(p)]
    if not found:
        return ""
    names = " or ".join(found)
    return f"{names} seems to be meant: rename it to {wanted}."


def means(name: str, wanted: str) -> bool:
    """Whether a folder of this name seems to be for 'images' or for 'masks'."""
    return name.lower() in _FOLDERS[wanted].split()


def core(stem: str) -> str:
    """A name without words such as 'mask', and written in one way; equal for names that are close."""
    before, left = "", unicodedata.normalize("NFC", stem).strip().lower()
    while left != before:
        before, left = left, _AFFIX.sub("", left)
    return re.sub(r"[ ._-]+", "_", re.sub(r"\d+", lambda match: str(int(match[0])), left))


def closeness(image: str, mask: str) -> str:
    """In what two names differ that `core` takes for close."""
    if unicodedata.normalize("NFC", image) == unicodedata.normalize("NFC", mask):
        return "it looks the same as {}, but its accents are stored in another Unicode form (NFC against NFD)"
    if image.strip() == mask.strip():
        return "it has a blank at its start or end, or {} has"
    if image.lower() == mask.lower():
        return "it differs only in case from {}"
    return "its name is not that of an image, but close to {}"


def same_numbering(images: Sequence[str], masks: Sequence[str]) -> dict[str, str]:
    """Mask -> image where all names of each side differ in one place only, and what stands there is the same.

    Such as `tile_7_before`, `tile_8_before` and `truth-7`, `truth-8`. Empty where that is not so for all.
    """
    if len(images) < 2 or len(images) != len(masks):
        return {}
    image_of, mask_of = _varying(images), _varying(masks)
    if image_of.keys() != mask_of.keys() or len(image_of) != len(images) or len(mask_of) != len(masks):
        return {}
    return {mask: image_of[place] for place, mask in mask_of.items()}


def group(stems: Iterable[str]) -> dict[str, list[str]]:
    """Names by their `core`."""
    groups: dict[str, list[str]] = defaultdict(list)
    for stem in stems:
        groups[core(stem)].append(stem)
    return groups


def _varying(names: Sequence[str]) -> dict[str, str]:
    """The part in which names differ, whole numbers kept whole -> name."""
    start = re.sub(r"\d+$", "", os.path.commonprefix(list(names)))  # noqa: RUF071  # of letters
    turned = re.sub(r"\d+$", "", os.path.commonprefix([n[::-1] for n in names]))  # noqa: RUF071
    return {name[len(start) : len(name) - len(turned)]: name for name in names}
