"""Microscopy: many round objects, touching, in several stains."""

import numpy as np
from scipy import ndimage

from convlora.pretraining.shapes import MAX_IDS, Drawing, Ids, Points, draw_ids, fourier_outlines
from convlora.pretraining.textures import (
    Float,
    TextureBank,
    contrasting_colour,
    random_colour,
    rgb,
    value_noise,
)


def draw_cells(rng: np.random.Generator, size: int, textures: TextureBank) -> Drawing:
    """Cells or nuclei; the coarse map holds whole cells, clusters of touching ones, or all of them."""
    radius = float(np.exp(rng.uniform(np.log(3.5), np.log(26)))) * size / 256
    outlines = _outlines(rng, size, radius)
    ids = draw_ids(outlines, size)
    background, foreground = _stain(rng, size, textures)
    has_body = rng.random() < 0.25 and radius > 6
    coarse, image = ids, background
    if has_body:
        coarse = _grown(rng, outlines, size)
        coarse = np.where(ids > 0, ids, coarse)
        body = 0.5 * background.mean((0, 1)) + 0.5 * random_colour(rng)
        image = _fill(rng, image, coarse, np.broadcast_to(body, image.shape), 0.1)
    elif rng.random() < 0.5:
        coarse = (ids > 0).astype(np.uint8)
    else:
        coarse = _clusters(ids)
    if rng.random() < 0.3:
        image = _halo(rng, image, ids, radius)
    image = _fill(rng, image, ids, foreground, rng.uniform(0.02, 0.15))
    if rng.random() < 0.3:
        image = _rim(rng, image, ids)
    return Drawing(image, ids, coarse)


def _outlines(rng: np.random.Generator, size: int, radius: float) -> list[Points]:
    spread = rng.uniform(0.05, 0.4)
    spacing = radius * rng.uniform(1.5, 4.5)
    side = np.arange(spacing / 2, size + spacing / 2, spacing)
    centres = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    centres += rng.uniform(-0.6, 0.6, centres.shape) * spacing
    if rng.random() < 0.4:  # leave gaps as between clusters
        density = value_noise(rng, 32, 32, rng.uniform(2, 5))
        cell = np.clip(centres * 32 / size, 0, 31).astype(int)
        centres = centres[density[cell[:, 1], cell[:, 0]] > rng.uniform(0.35, 0.55)]
    rng.shuffle(centres)
    centres = centres[: int(rng.integers(MAX_IDS // 2, MAX_IDS))]
    count = len(centres)
    unit = fourier_outlines(rng, count, rng.uniform(0.02, 0.3), 20)
    aspect = np.clip(1 - np.abs(rng.normal(0, rng.uniform(0.1, 0.5), count)), 0.35, 1)
    unit[..., 1] *= aspect[:, None]
    angle = rng.uniform(0, 2 * np.pi, count)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    x, y = unit[..., 0] * cos - unit[..., 1] * sin, unit[..., 0] * sin + unit[..., 1] * cos
    radii = radius * np.exp(rng.normal(0, spread, count))[:, None, None]
    return list(np.stack([x, y], -1) * radii + centres[:, None])


def _stain(rng: np.random.Generator, size: int, textures: TextureBank) -> tuple[Float, Float]:
    """Background and foreground, each float32 (size, size, 3)."""
    kind = rng.random()
    if kind < 0.3:  # haematoxylin and eosin
        pink = np.array([0.90, 0.68, 0.80], np.float32) + rng.normal(0, 0.06, 3).astype(np.float32)
        purple = np.array([0.42, 0.28, 0.58], np.float32) + rng.normal(0, 0.08, 3).astype(np.float32)
        white = np.array([0.95, 0.93, 0.95], np.float32)
        tissue = value_noise(rng, size, size, rng.uniform(3, 20), 4, 0.7)
        mix = np.clip(
            (tissue - 0.5) * np.float32(rng.uniform(1, 4)) + np.float32(rng.uniform(0.2, 0.9)), 0, 1
        )
        background = white + rgb(mix) * (pink - white)
        background += rgb((tissue[::-1] - 0.5) * np.float32(rng.uniform(0.1, 0.5)))
        return background, _mottled(rng, size, purple, rng.uniform(0.1, 0.6))
    if kind < 0.6:  # fluorescence
        glow = value_noise(rng, size, size, rng.uniform(1, 6), 2)
        colour = np.ones(3, np.float32) if rng.random() < 0.6 else random_colour(rng)
        colour = colour * np.float32(rng.uniform(0.25, 0.95)) / max(float(colour.max()), 0.05)
        background = rgb(glow) * colour * np.float32(rng.uniform(0.0, 0.35)) + np.float32(
            rng.uniform(0, 0.08)
        )
        return background, _mottled(rng, size, colour, rng.uniform(0.02, 0.4))
    base = random_colour(rng)
    background = textures.texture(rng, size, size, base, rng.uniform(0.02, 0.25))
    colour = contrasting_colour(rng, base, rng.uniform(0.15, 0.45))
    return background, textures.texture(rng, size, size, colour, rng.uniform(0.02, 0.3))


def _mottled(rng: np.random.Generator, size: int, colour: Float, contrast: float) -> Float:
    """Grains of chromatin: fine noise about a colour."""
    noise = value_noise(rng, size, size, size / rng.uniform(3, 16), 2, 0.8)
    return rgb((noise - 0.5) * np.float32(contrast)) + colour


def _fill(rng: np.random.Generator, image: Float, ids: Ids, colour: Float, spread: float) -> Float:
    """Replace the pixels of all objects by `colour`, each object with its own brightness and opacity."""
    count = int(ids.max()) + 1
    gain = np.clip(1 + rng.normal(0, spread, count), 0.4, 1.6).astype(np.float32)
    opacity = rng.uniform(rng.uniform(0.6, 1.0), 1.0, count).astype(np.float32)
    opacity[0] = 0.0
    alpha = np.take(opacity, ids)
    if rng.random() < 0.25:  # out of focus
        alpha = ndimage.uniform_filter(alpha, (rng.integers(2, 6), rng.integers(2, 6)))
    return image + rgb(alpha) * (colour * rgb(np.take(gain, ids)) - image)


def _grown(rng: np.random.Generator, outlines: list[Points], size: int) -> Ids:
    scale = rng.uniform(1.5, 2.5)
    return draw_ids([(points - points.mean(0)) * scale + points.mean(0) for points in outlines], size)


def _clusters(ids: Ids) -> Ids:
    labels, count = ndimage.label(ids > 0)
    return np.where(labels <= min(count, MAX_IDS), labels, 0).astype(np.uint8)


def _halo(rng: np.random.Generator, image: Float, ids: Ids, radius: float) -> Float:
    """Light or dark glow round the objects, as in phase contrast and out-of-focus light."""
    glow = ndimage.gaussian_filter(
        (ids > 0).astype(np.float32), radius * rng.uniform(0.15, 0.6), truncate=2.5
    )
    return image + rgb(glow * np.float32(rng.uniform(-0.35, 0.35)))


def _rim(rng: np.random.Generator, image: Float, ids: Ids) -> Float:
    """Membrane: object pixels next to another id."""
    edge = np.zeros(ids.shape, bool)
    edge[1:] |= ids[1:] != ids[:-1]
    edge[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edge &= ids > 0
    image[edge] += np.float32(rng.choice([-1, 1]) * rng.uniform(0.08, 0.3))
    return image
