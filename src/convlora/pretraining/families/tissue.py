"""Organs and tissue as in magnetic resonance: nested smooth regions, folds, ribbons, low contrast."""

import numpy as np
from scipy import ndimage

from convlora.pretraining.shapes import MAX_IDS, Drawing, Ids
from convlora.pretraining.textures import Float, TextureBank, random_colour, rgb, value_noise


def draw_tissue(rng: np.random.Generator, size: int, textures: TextureBank) -> Drawing:
    """Nested layers of one organ, a folded organ, or level sets of smooth noise."""
    kind = rng.random()
    if kind < 0.35:
        ids, coarse, layers = _nested(rng, size)
    elif kind < 0.7:
        ids, coarse, layers = _folded(rng, size)
    else:
        ids, coarse = _level_sets(rng, size)
        return Drawing(_coloured(rng, ids, _by_group(rng, ids, coarse), textures), ids, coarse)
    levels = _by_layer(rng, layers)
    if rng.random() < 0.4:
        ids, levels = _with_lesions(rng, ids, levels)
    return Drawing(_coloured(rng, ids, levels, textures), ids, coarse)


def _distance(rng: np.random.Generator, size: int, warp: float) -> Float:
    """About 1 on a bent oval within the image, 0 at its centre."""
    centre = size * rng.uniform(0.35, 0.65, 2)
    radii = size * rng.uniform(0.25, 0.48, 2)
    angle = rng.uniform(0, np.pi)
    x = np.arange(size, dtype=np.float32)[None] - np.float32(centre[0])
    y = np.arange(size, dtype=np.float32)[:, None] - np.float32(centre[1])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = (x * cos + y * sin) / np.float32(radii[0]), (y * cos - x * sin) / np.float32(radii[1])
    noise = value_noise(rng, size, size, rng.uniform(2, 5), 2) - 0.5
    return np.sqrt(u * u + v * v) + noise * np.float32(warp)


def _nested(rng: np.random.Generator, size: int) -> tuple[Ids, Ids, int]:
    """Instances, coarse map and number of layers."""
    distance = _distance(rng, size, rng.uniform(0.1, 1.0))
    edges = np.sort(rng.uniform(0.15, 1.0, rng.integers(2, 6)))
    edges[-1] = max(edges[-1], 0.8)
    layer = np.searchsorted(edges, distance.ravel()).reshape(distance.shape)
    ids = (len(edges) - layer).astype(np.uint8)
    return ids, (ids > 0).astype(np.uint8), len(edges)


def _folded(rng: np.random.Generator, size: int) -> tuple[Ids, Ids, int]:
    """Brain-like: a shell, a folded ribbon within it, the core, and cavities."""
    distance = _distance(rng, size, rng.uniform(0.05, 0.3))
    folds = value_noise(rng, size, size, rng.uniform(5, 16), 2, 0.4) - 0.5
    depth = distance + folds * np.float32(rng.uniform(0.5, 1.7)) * np.clip(distance, 0, 1)
    ids = np.zeros((size, size), np.uint8)
    head = distance < 1.0
    outer = rng.uniform(0.8, 0.92)
    shell = rng.random() < 0.6
    ids[head] = 1 if shell else 0
    brain = distance < outer
    ids[brain] = 2 if rng.random() < 0.5 else 3
    ids[brain & (depth < outer * rng.uniform(0.85, 0.95))] = 3
    ids[brain & (depth < outer * rng.uniform(0.58, 0.8))] = 4
    cavity = value_noise(rng, size, size, rng.uniform(3, 6))
    ids[(distance < 0.45) & (cavity > rng.uniform(0.6, 0.75))] = 5
    coarse = brain.astype(np.uint8) * np.uint8(2)
    if shell:
        coarse[head & ~brain] = 1
    return ids, coarse, 5


def _level_sets(rng: np.random.Generator, size: int) -> tuple[Ids, Ids]:
    """Connected regions between thresholds of smooth noise, thin ribbons among them; coarse: the level."""
    noise = value_noise(rng, size, size, rng.uniform(2, 9), int(rng.integers(1, 4)), 0.4)
    centre, width = rng.uniform(0.4, 0.6), rng.uniform(0.02, 0.1)
    level = np.zeros((size, size), np.uint8)
    if rng.random() < 0.6:
        level[np.abs(noise - centre) < width] = 1
    level[noise > centre + width] = 2
    if rng.random() < 0.5:
        level[noise < centre - width * 2] = 3
    ids = np.zeros((size, size), np.uint8)
    total = 0
    for value in range(1, 4):
        labels, count = ndimage.label(level == value)
        room = min(count, MAX_IDS - total)
        ids += np.where((labels > 0) & (labels <= room), labels + total, 0).astype(np.uint8)
        total += room
    return ids, level


def _with_lesions(rng: np.random.Generator, ids: Ids, levels: Float) -> tuple[Ids, Float]:
    """Small spots inside the organ, each an instance of its own, all of about one brightness."""
    size, first = ids.shape[0], len(levels) - 1
    noise = value_noise(rng, size, size, rng.uniform(8, 24))
    labels, count = ndimage.label((noise > rng.uniform(0.8, 0.9)) & (ids > 0))
    count = min(count, MAX_IDS - first)
    spots = np.where((labels > 0) & (labels <= count), labels + first, ids).astype(np.uint8)
    darkest, brightest = float(levels[1:].min()), float(levels[1:].max())
    level = min(brightest + 0.2, 1.0) if rng.random() < 0.6 else max(darkest - 0.2, 0.0)
    return spots, np.concatenate([levels, (level + rng.normal(0, 0.03, count)).astype(np.float32)])


def _coloured(rng: np.random.Generator, ids: Ids, levels: Float, textures: TextureBank) -> Float:
    """Brightness by id, grey or between two colours, with a texture shared by all."""
    size = ids.shape[0]
    table = np.repeat(levels[:, None], 3, 1)
    if rng.random() < 0.3:
        low, high = random_colour(rng), random_colour(rng)
        table = table * np.float32(0.6) + (low + levels[:, None] * (high - low)) * np.float32(0.4)
    image = np.take(table, ids, axis=0)
    if rng.random() < 0.6:
        strength = np.float32(rng.uniform(0.02, 0.2))
        image += rgb((value_noise(rng, size, size, rng.uniform(4, 40), 3, 0.8) - 0.5) * strength)
    if rng.random() < 0.3:
        image += rgb(textures.grain(rng, size, size)[..., 0] * np.float32(rng.uniform(0.02, 0.08)))
    return image


def _by_layer(rng: np.random.Generator, layers: int) -> Float:
    """Brightness of 0..layers: evenly spaced in random order, so that any two differ by a step."""
    span = rng.uniform(0.45, 0.95)
    levels = rng.uniform(0, 1 - span) + span * rng.permutation(np.linspace(0, 1, layers + 1))
    if rng.random() < 0.6:  # dark surroundings, as outside the body
        levels[levels.argmin()] = levels[0]
        levels[0] = 0.0
    return levels.astype(np.float32)


def _by_group(rng: np.random.Generator, ids: Ids, coarse: Ids) -> Float:
    """Brightness of each id: about that of its group."""
    group = np.zeros(int(ids.max()) + 1, int)
    group[ids.ravel()] = coarse.ravel()
    base = rng.permutation(np.linspace(rng.uniform(0, 0.3), rng.uniform(0.7, 1), 4))
    return (base[group] + rng.normal(0, 0.03, len(group))).astype(np.float32)
