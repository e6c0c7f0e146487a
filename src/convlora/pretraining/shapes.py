"""Outlines, random walks and their rasterisation for generated scenes."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from convlora.pretraining.textures import Float, rgb

Ids = NDArray[np.uint8]
Points = NDArray[np.float64]  # (K, 2) as (x, y)

MAX_IDS = 250
_SCALE = (
    2  # outlines are drawn at twice the size and averaged down: smooth edges at the price of a small bitmap
)


@dataclass
class Drawing:
    """A scene being painted.

    Attributes:
        image: float32 (H, W, 3), about [0, 1].
        instances: uint8 (H, W), 0 is background.
        coarse: uint8 (H, W), ids of the larger groups that the instances belong to.
    """

    image: Float
    instances: Ids
    coarse: Ids

    @classmethod
    def on(cls, image: Float) -> "Drawing":
        """Start from a background without objects."""
        return cls(image, np.zeros(image.shape[:2], np.uint8), np.zeros(image.shape[:2], np.uint8))

    def paint(self, stamp: "Stamp", colour: Float, instance: int, coarse: int | None = None) -> None:
        """Blend `colour`, (3,) or (h, w, 3), through the stamp; its pixels get the ids (None: as before)."""
        window = self.image[stamp.window]
        window += rgb(stamp.alpha) * (colour - window)
        self.instances[stamp.window][stamp.mask] = instance
        if coarse is not None:
            self.coarse[stamp.window][stamp.mask] = coarse


@dataclass(frozen=True)
class Stamp:
    """A rasterised outline: coverage float32 (h, w) in [0, 1] and its place in the image."""

    alpha: Float
    window: tuple[slice, slice]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Pixels that the outline covers by half or more, bool (h, w)."""
        return self.alpha >= 0.5

    def within(self, other: "Stamp", size: int) -> "Stamp":
        """The part of this stamp that the other one, of the same image, covers as well."""
        cover = np.zeros((size, size), np.float32)
        cover[other.window] = other.alpha
        return Stamp(np.minimum(self.alpha, cover[self.window]), self.window)


def random_walk(
    rng: np.random.Generator, start: Points, angle: float, steps: int, step: float, wiggle: float
) -> Points:
    """Smooth path from `start` (2,): (steps + 1, 2); `wiggle` is the spread of a step's turn in radians."""
    turns = rng.normal(0.0, wiggle, steps)
    turns = 0.6 * turns + 0.4 * np.roll(turns, 1)
    angles = angle + np.cumsum(turns)
    path = np.cumsum(np.stack([np.cos(angles), np.sin(angles)], 1) * step, axis=0)
    return np.concatenate([np.asarray(start, np.float64)[None], start + path])


def fourier_outlines(rng: np.random.Generator, count: int, rough: float, points: int = 24) -> Points:
    """Star-shaped blobs of mean radius 1 about the origin, (count, points, 2).

    Args:
        rng: source of randomness.
        count: number of outlines.
        rough: amplitude of the harmonics, 0 gives circles.
        points: vertices of each outline.
    """
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    orders = np.arange(2, 7)
    amplitude = rng.normal(0.0, rough, (count, len(orders), 1)) / orders[:, None]
    phase = rng.uniform(0, 2 * np.pi, (count, len(orders), 1))
    radius = 1 + (amplitude * np.cos(orders[:, None] * angles + phase)).sum(1)
    radius = np.clip(radius, 0.3, 1.8)[..., None]
    return radius * np.stack([np.cos(angles), np.sin(angles)], -1)


def turned(points: Points, angle: float) -> Points:
    """Points (..., 2) turned about the origin by `angle` radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def blob(rng: np.random.Generator) -> Points:
    """Smooth irregular outline."""
    return fourier_outlines(rng, 1, rng.uniform(0.05, 0.5), 48)[0]


def superellipse(rng: np.random.Generator) -> Points:
    """Between diamond, ellipse and rounded rectangle."""
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    power = 2 / rng.choice([1.2, 2.0, 2.0, 3.0, 6.0])
    cos, sin = np.cos(angles), np.sin(angles)
    return np.stack([np.sign(cos) * np.abs(cos) ** power, np.sign(sin) * np.abs(sin) ** power], 1)


def polygon(rng: np.random.Generator) -> Points:
    """Star-shaped polygon of 3 to 9 corners."""
    corners = int(rng.integers(3, 10))
    angles = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * 2 * np.pi / corners
    radius = rng.uniform(rng.choice([0.4, 0.8]), 1.1, corners)
    return radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def rectilinear(rng: np.random.Generator) -> Points:
    """Rectangle, or an L or T as of a roof seen from above."""
    kind, a, b = rng.random(), rng.uniform(-0.5, 0.4), rng.uniform(-0.5, 0.4)
    if kind < 0.5:
        corners: list[tuple[float, float]] = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    elif kind < 0.8:
        corners = [(-1, -1), (1, -1), (1, b), (a, b), (a, 1), (-1, 1)]
    else:
        c = rng.uniform(0.3, 0.7)
        corners = [(-1, -1), (1, -1), (1, b), (c, b), (c, 1), (-c, 1), (-c, b), (-1, b)]
    return np.array(corners, np.float64)


def leaf(rng: np.random.Generator) -> Points:
    """Pointed oval along x, smooth or toothed."""
    x = np.linspace(-1, 1, 40)
    half = rng.uniform(0.25, 0.6) * (1 - x**2) ** rng.uniform(0.6, 1.3) * (1 - rng.uniform(0, 0.5) * x)
    if rng.random() < 0.4:
        half = half * (1 + rng.uniform(0, 0.25) * np.sign(np.sin(x * rng.uniform(20, 50))))
    upper, lower = np.stack([x, half], 1), np.stack([x[::-1], -half[::-1] * rng.uniform(0.7, 1.2)], 1)
    return np.concatenate([upper, lower])


def stroke(rng: np.random.Generator) -> Points:
    """Bent band of slowly changing width."""
    path = random_walk(rng, np.zeros(2), rng.uniform(0, 2 * np.pi), 14, 0.16, rng.uniform(0.05, 0.4))
    path -= path.mean(0)
    along = np.gradient(path, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], 1) / np.linalg.norm(along, axis=1, keepdims=True)
    ends = np.sin(np.linspace(0.25, np.pi - 0.25, len(path)))[:, None]
    width = (
        rng.uniform(0.05, 0.3)
        * (1 + 0.4 * np.sin(np.linspace(0, rng.uniform(0, 9), len(path))))[:, None]
        * ends
    )
    return np.concatenate([path + normal * width, (path - normal * width)[::-1]])


OUTLINES: tuple[Callable[[np.random.Generator], Points], ...] = (
    blob, blob, superellipse, polygon, rectilinear, leaf, stroke
)  # fmt: skip


def random_outline(rng: np.random.Generator, centre: Points, radius: float) -> Points:
    """Outline of a random kind, squeezed and turned, about `centre` (2,) with about `radius` pixels."""
    unit = OUTLINES[rng.integers(len(OUTLINES))](rng)
    squeezed = unit * (1.0, rng.uniform(0.4, 1.0))
    return turned(squeezed, rng.uniform(0, 2 * np.pi)) * radius + centre


def rasterise(points: Points, size: int) -> Stamp | None:
    """Filled polygon as coverage within its bounding box clipped to `size`; None if nothing is inside."""
    low = np.clip(np.floor(points.min(0)).astype(int) - 1, 0, size)
    high = np.clip(np.ceil(points.max(0)).astype(int) + 2, 0, size)
    width, height = (int(side) for side in high - low)
    if width <= 0 or height <= 0:
        return None
    bitmap = Image.new("L", (width * _SCALE, height * _SCALE))
    corners = ((points - low + 0.5) * _SCALE).ravel().tolist()
    ImageDraw.Draw(bitmap).polygon(corners, fill=255)
    alpha = np.asarray(bitmap.reduce(_SCALE), np.float32) * np.float32(1 / 255)
    return Stamp(alpha, (slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))))


def draw_ids(outlines: list[Points], size: int) -> Ids:
    """Polygons filled with 1, 2, ... in order, later ones on top: uint8 (size, size); `MAX_IDS` at most."""
    bitmap = Image.new("L", (size, size))
    draw = ImageDraw.Draw(bitmap)
    for number, points in enumerate(outlines[:MAX_IDS], start=1):
        draw.polygon(points.ravel().tolist(), fill=number)
    return np.array(bitmap)


def draw_lines(paths: list[tuple[Points, NDArray[np.float64]]], size: int) -> Float:
    """Coverage in [0, 1], float32 (size, size), of paths: points (K, 2) and K - 1 widths in pixels."""
    bitmap = Image.new("L", (size * _SCALE, size * _SCALE))
    draw = ImageDraw.Draw(bitmap)
    for points, widths in paths:
        scaled = (points + 0.5) * _SCALE
        pixels = np.maximum(np.rint(widths * _SCALE), 1).astype(int).tolist()
        segments = np.concatenate([scaled[:-1], scaled[1:]], 1).tolist()
        for segment, width in zip(segments, pixels, strict=True):
            draw.line(segment, fill=255, width=width)
            if width > 4:  # rounds the joints, which show as notches in wide lines
                x, y, r = segment[2], segment[3], width / 2 - 0.5
                draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return np.asarray(bitmap.reduce(_SCALE), np.float32) * np.float32(1 / 255)
