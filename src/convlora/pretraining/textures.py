"""Textures for generated scenes: procedural noise and, on request, crops of free photographs."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convlora.errors import DataError, MissingExtraError

Float = NDArray[np.float32]

# Photographs inside the scikit-image wheel (skimage/data) -> licence as stated by the docstring of the
# function that loads them (skimage/data/_fetchers.py, 0.25.2). Left out: files without a stated licence
# (moon, page, motorcycle), portraits (astronaut, lfw_subset), drawings, and images that are themselves
# segmentation examples (coins, cell, retina, microaneurysms).
PHOTO_LICENCES: dict[str, str] = {
    "brick.png": "CC0: 'licensed under the Creative Commons CC0 License'",
    "camera.png": "CC0: 'No copyright restrictions. CC0 by the photographer'",
    "chelsea.png": "CC0: 'No copyright restrictions.  CC0 by the photographer'",
    "clock_motion.png": "public domain: 'Released into the public domain by the photographer'",
    "coffee.png": "CC0: 'No copyright restrictions.  CC0 by the photographer'",
    "grass.png": "CC0: 'licensed under the Creative Commons CC0 License'",
    "gravel.png": "CC0: 'licensed under the Creative Commons CC0 License'",
    "hubble_deep_field.jpg": "public domain: 'may be freely used in the public domain' (NASA)",
    "rocket.jpg": "public domain: 'released in the public domain' (SpaceX)",
}

_POOL_SIDE = 1024
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def value_noise(
    rng: np.random.Generator, height: int, width: int, cells: float, octaves: int = 1, falloff: float = 0.5
) -> Float:
    """Smooth noise in [0, 1], float32 (height, width): random grids enlarged by bicubic resizing and summed.

    Args:
        rng: source of randomness.
        height: rows of the result.
        width: columns of the result.
        cells: grid cells along the longer side in the first octave; each octave doubles them.
        octaves: number of grids.
        falloff: weight of an octave relative to the one before.
    """
    total = np.zeros((height, width), np.float32)
    longest, weight, norm = max(height, width), 1.0, 0.0
    for octave in range(octaves):
        density = min(cells * 2**octave, longest) / longest
        shape = (max(2, round(height * density) + 1), max(2, round(width * density) + 1))
        grid = Image.fromarray(rng.random(shape, dtype=np.float32))
        total += weight * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
        norm += weight
        weight *= falloff
    return np.clip(total / norm, 0.0, 1.0)


def rgb(field: Float) -> Float:
    """Three equal channels, (h, w) to (h, w, 3): copied, as broadcasting over so short an axis is slower."""
    return np.repeat(field[..., None], 3, axis=2)


def luma(colour: Float) -> Float:
    """Brightness of RGB values (..., 3) in [0, 1]."""
    return colour @ _LUMA


def random_colour(rng: np.random.Generator) -> Float:
    """RGB in [0, 1], float32 (3,): any brightness, mostly muted as in photographs."""
    grey, *tint = rng.random(4).tolist()
    strength = (0.1, 0.4, 0.9)[rng.integers(3)]
    colour = [min(max(0.05 + 0.9 * grey + (value - 0.5) * strength, 0.0), 1.0) for value in tint]
    return np.array(colour, np.float32)  # plain floats: faster than arrays of three


def contrasting_colour(rng: np.random.Generator, reference: Float, least: float = 0.15) -> Float:
    """Colour whose brightness is `least` or more from that of `reference`, both (3,); else the best drawn."""
    best, gap = random_colour(rng), -1.0
    for _ in range(8):
        colour = random_colour(rng)
        distance = abs(float(luma(colour) - luma(reference)))
        if distance > gap:
            best, gap = colour, distance
        if gap >= least:
            break
    return best


class TextureBank:
    """Source of textures; immutable after construction, so one bank serves any number of scenes.

    Args:
        photos: also use photographs that scikit-image ships under free licences (`PHOTO_LICENCES`).
        seed: seed of the pool that pixel noise is cropped from.

    Raises:
        MissingExtraError: photographs are asked for and scikit-image is not installed.
        DataError: the installed scikit-image lacks one of the photographs.
    """

    def __init__(self, photos: bool = False, seed: int = 0) -> None:
        # Cropping a pool costs a hundredth of drawing normal noise for every scene.
        pool = np.random.default_rng(seed).standard_normal((_POOL_SIDE, _POOL_SIDE, 3), dtype=np.float32)
        self._pool = pool
        self._photos = _load_photos() if photos else []

    def grain(self, rng: np.random.Generator, height: int, width: int) -> Float:
        """White normal noise, float32 (height, width, 3), standard deviation 1; do not write to it.

        Raises:
            DataError: a side exceeds the pool.
        """
        if max(height, width) > _POOL_SIDE:
            raise DataError(
                f"texture of {height}x{width} pixels asked for; the rule is at most {_POOL_SIDE} a side"
            )
        top = int(rng.integers(_POOL_SIDE - height + 1))
        left = int(rng.integers(_POOL_SIDE - width + 1))
        crop = self._pool[top : top + height, left : left + width]
        flip = int(rng.integers(4))
        return crop[:: 1 - 2 * (flip & 1), :: 1 - (flip & 2)]

    def photo(self, rng: np.random.Generator, height: int, width: int) -> Float:
        """Crop of a photograph at random scale, mirrored, recoloured: float32 (height, width, 3) in [0, 1].

        Without photographs it is a texture of many octaves.
        """
        if not self._photos:
            return self._procedural(rng, height, width, octaves=6)
        photo = self._photos[rng.integers(len(self._photos))]
        share = min(photo.height / height, photo.width / width) * rng.uniform(0.25, 1.0)
        crop_w, crop_h = width * share, height * share
        left, top = rng.uniform(0, photo.width - crop_w), rng.uniform(0, photo.height - crop_h)
        box = (left, top, left + crop_w, top + crop_h)
        small = photo.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=1.5)
        crop = np.asarray(small, np.float32) * np.float32(1 / 255)
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        if rng.random() < 0.3:
            crop = crop[..., rng.permutation(3)]
        if rng.random() < 0.3:
            crop = np.clip(crop * rng.uniform(0.5, 1.3) + (random_colour(rng) - 0.5) * 0.4, 0.0, 1.0)
        return np.ascontiguousarray(crop, np.float32)

    def texture(
        self,
        rng: np.random.Generator,
        height: int,
        width: int,
        colour: Float | None = None,
        contrast: float | None = None,
    ) -> Float:
        """Random texture, float32 (height, width, 3) in about [0, 1].

        Args:
            rng: source of randomness.
            height: rows.
            width: columns.
            colour: mean RGB in [0, 1], drawn if None.
            contrast: distance in [0, 1] between the two colours that the pattern mixes, drawn if None.
        """
        if self._photos and rng.random() < 0.25:
            crop = self.photo(rng, height, width)
            if colour is None:
                return crop
            scale = 0.7 if contrast is None else contrast * 2
            return (crop - crop.mean((0, 1))) * np.float32(scale) + colour
        return self._procedural(rng, height, width, colour, contrast)

    def _procedural(
        self,
        rng: np.random.Generator,
        height: int,
        width: int,
        colour: Float | None = None,
        contrast: float | None = None,
        octaves: int | None = None,
    ) -> Float:
        colour = random_colour(rng) if colour is None else colour
        contrast = rng.uniform(0.02, 0.5) if contrast is None else contrast
        delta = (random_colour(rng) - 0.5) + np.float32(rng.integers(2) - 0.5)
        delta *= np.float32(contrast / max(float(np.abs(delta).max()), 1e-6))
        if octaves is None:
            pattern = _PATTERNS[rng.integers(len(_PATTERNS))](rng, height, width)
        else:
            pattern = value_noise(rng, height, width, rng.uniform(2, 6), octaves, 0.7)
        result = np.einsum("hw,c->hwc", pattern, delta)
        result.reshape(height, -1)[...] += np.tile(colour - np.float32(0.5) * delta, width)
        if rng.random() < 0.3:
            result += self.grain(rng, height, width) * np.float32(rng.uniform(0.01, 0.08))
        return result


def _flat(rng: np.random.Generator, height: int, width: int) -> Float:
    return np.full((height, width), 0.5, np.float32)


def _clouds(rng: np.random.Generator, height: int, width: int) -> Float:
    noise = value_noise(
        rng, height, width, rng.uniform(1, 12), int(rng.integers(1, 5)), rng.uniform(0.4, 0.9)
    )
    return (noise - 0.5) * 1.8 + 0.5


def _spots(rng: np.random.Generator, height: int, width: int) -> Float:
    cells = max(height, width) / rng.uniform(3, 14)
    noise = value_noise(rng, height, width, cells)
    return np.clip((noise - rng.uniform(0.4, 0.7)) * rng.uniform(2, 8) + 0.5, 0.0, 1.0)


def _ramp(rng: np.random.Generator, height: int, width: int) -> Float:
    angle = rng.uniform(0, 2 * np.pi)
    rows = np.arange(height, dtype=np.float32)[:, None] * np.float32(np.sin(angle))
    return rows + np.arange(width, dtype=np.float32) * np.float32(np.cos(angle))


def _gradient(rng: np.random.Generator, height: int, width: int) -> Float:
    ramp = _ramp(rng, height, width)
    return (ramp - ramp.min()) / max(float(np.ptp(ramp)), 1e-6)


def _stripes(rng: np.random.Generator, height: int, width: int) -> Float:
    phase = _ramp(rng, height, width) * np.float32(2 * np.pi / rng.uniform(4, 24))
    if rng.random() < 0.7:
        phase = phase + value_noise(rng, height, width, rng.uniform(2, 6)) * np.float32(rng.uniform(0, 12))
    return np.clip(np.sin(phase) * np.float32(rng.uniform(0.5, 3)), -1.0, 1.0) * 0.5 + 0.5


def _checks(rng: np.random.Generator, height: int, width: int) -> Float:
    period = np.float32(np.pi / rng.uniform(5, 20))
    slope = np.float32(rng.uniform(-0.6, 0.6))
    rows, columns = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    product = np.sin((rows + slope * columns) * period) * np.sin((columns - slope * rows) * period)
    return np.clip(product * np.float32(rng.uniform(1, 6)), -0.5, 0.5) + 0.5


_PATTERNS: tuple[Callable[[np.random.Generator, int, int], Float], ...] = (
    _flat, _flat, _clouds, _clouds, _clouds, _spots, _spots, _gradient, _stripes, _checks
)  # fmt: skip


def _load_photos() -> list[Image.Image]:
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        raise MissingExtraError("texturing the scenes with photographs", "pretrain", "scikit-image")
    folder = Path(spec.origin).parent / "data"
    missing = [name for name in PHOTO_LICENCES if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder} lacks {', '.join(missing)}; the installed scikit-image is not supported.\n"
            "Install 0.22 or later from a wheel, or generate the scenes without photographs."
        )
    photos = []
    for name in PHOTO_LICENCES:
        with Image.open(folder / name) as file:
            photos.append(file.convert("RGB"))
    return photos
