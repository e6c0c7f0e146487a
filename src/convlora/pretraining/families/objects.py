"""Textured objects that occlude each other, on textures or on photographs."""

import numpy as np
from scipy import ndimage

from convlora.pretraining.shapes import (
    Drawing,
    Points,
    Stamp,
    draw_lines,
    leaf,
    random_outline,
    rasterise,
    turned,
)
from convlora.pretraining.textures import Float, TextureBank, contrasting_colour, rgb


def draw_shapes(rng: np.random.Generator, size: int, textures: TextureBank) -> Drawing:
    """Three to thirty shapes; parts of a shape are instances, the whole shape is coarse."""
    drawing = Drawing.on(textures.texture(rng, size, size))
    count = int(np.exp(rng.uniform(np.log(3), np.log(30))))
    radius = size * rng.uniform(0.5, 0.9) / np.sqrt(count + 2)
    _scatter(rng, drawing, textures, count, radius)
    return drawing


def draw_on_photo(rng: np.random.Generator, size: int, textures: TextureBank) -> Drawing:
    """One to eight shapes with shadows on a photograph."""
    drawing = Drawing.on(textures.photo(rng, size, size))
    count = int(rng.integers(1, 9))
    _scatter(rng, drawing, textures, count, size * rng.uniform(0.25, 0.5) / np.sqrt(count))
    return drawing


def _scatter(
    rng: np.random.Generator, drawing: Drawing, textures: TextureBank, count: int, radius: float
) -> None:
    size = drawing.image.shape[0]
    number, shade = 1, rng.random() < 0.5
    offset = turned(np.array([1.0, 0.0]), rng.uniform(0, 2 * np.pi)) * radius * rng.uniform(0.05, 0.3)
    for whole in range(1, count + 1):
        centre = rng.uniform(0.02, 0.98, 2) * size
        reach = radius * np.exp(rng.normal(0, 0.45))
        outline = random_outline(rng, centre, reach)
        stamp = rasterise(outline, size)
        if stamp is None:
            continue
        if shade:
            cast_shadow(drawing, rasterise(outline + offset, size), radius * 0.1)
        colour = _object_colour(rng, drawing.image[stamp.window])
        height, width = stamp.alpha.shape
        drawing.paint(stamp, _shaded(rng, textures.texture(rng, height, width, colour)), number, whole)
        number += 1
        if rng.random() < 0.25:
            number += _part(rng, drawing, textures, stamp, centre, reach, number)


def _object_colour(rng: np.random.Generator, behind: Float) -> Float | None:
    """None in one of four cases, where only chance and texture tell the object from what lies behind."""
    if rng.random() < 0.25:
        return None
    return contrasting_colour(rng, behind[::4, ::4].mean((0, 1)), rng.uniform(0.08, 0.35))


def _shaded(rng: np.random.Generator, texture: Float) -> Float:
    """Light from one side in half of the cases."""
    if rng.random() < 0.5:
        return texture
    height, width = texture.shape[:2]
    slope = rng.uniform(-0.5, 0.5, 2).astype(np.float32)
    light = np.linspace(-slope[0], slope[0], height, dtype=np.float32)[:, None]
    light = light + np.linspace(-slope[1], slope[1], width, dtype=np.float32)
    return texture * rgb(1 + light)


def _part(
    rng: np.random.Generator,
    drawing: Drawing,
    textures: TextureBank,
    whole: Stamp,
    centre: Points,
    reach: float,
    number: int,
) -> int:
    """Paint a smaller shape inside the whole; returns the number of ids used."""
    outline = random_outline(rng, centre + rng.uniform(-0.2, 0.2, 2) * reach, reach * rng.uniform(0.25, 0.6))
    size = drawing.image.shape[0]
    part = rasterise(outline, size)
    if part is None:
        return 0
    part = part.within(whole, size)
    colour = contrasting_colour(rng, drawing.image[part.window].mean((0, 1)), 0.15)
    height, width = part.alpha.shape
    drawing.paint(part, textures.texture(rng, height, width, colour), number)
    return 1


def cast_shadow(drawing: Drawing, stamp: Stamp | None, blur: float) -> None:
    """Darken what lies under the stamp, with a soft edge."""
    if stamp is None:
        return
    alpha = ndimage.uniform_filter(stamp.alpha, max(3, int(blur)), mode="nearest")
    drawing.image[stamp.window] *= rgb(1 - 0.5 * alpha)


def draw_leaves(rng: np.random.Generator, size: int, textures: TextureBank) -> Drawing:
    """One to a dozen leaves with veins; spots on a leaf are instances, the leaf with its spots is coarse."""
    drawing = Drawing.on(
        textures.photo(rng, size, size) if rng.random() < 0.5 else textures.texture(rng, size, size)
    )
    count = int(rng.integers(1, 13))
    radius = size * rng.uniform(0.4, 0.7) / np.sqrt(count)
    number = 1
    for whole in range(1, count + 1):
        unit = leaf(rng) * radius * np.exp(rng.normal(0, 0.25))
        angle, centre = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.9, 2) * size
        stamp = rasterise(turned(unit, angle) + centre, size)
        if stamp is None:
            continue
        height, width = stamp.alpha.shape
        green = np.array([rng.uniform(0.05, 0.6), rng.uniform(0.3, 0.8), rng.uniform(0.05, 0.4)], np.float32)
        colour = (
            green if rng.random() < 0.7 else contrasting_colour(rng, drawing.image[stamp.window].mean((0, 1)))
        )
        texture = _shaded(rng, textures.texture(rng, height, width, colour, rng.uniform(0.02, 0.25)))
        drawing.paint(stamp, _veined(rng, texture, stamp, unit, angle, centre), number, whole)
        number += 1
        for _ in range(int(rng.integers(0, 8)) if rng.random() < 0.4 else 0):
            spot = centre + turned(rng.uniform(-0.5, 0.5, 2) * (radius, radius * 0.25), angle)
            number += _part(rng, drawing, textures, stamp, spot, radius * rng.uniform(0.05, 0.25), number)
    return drawing


def _veined(
    rng: np.random.Generator, texture: Float, stamp: Stamp, unit: Points, angle: float, centre: Points
) -> Float:
    reach = float(unit[:, 0].max())
    corner = np.array([stamp.window[1].start, stamp.window[0].start])
    midrib = np.array([[-reach, 0.0], [reach, 0.0]])
    lines = [midrib]
    for x in np.linspace(-0.8, 0.6, int(rng.integers(0, 9))):
        lines += [np.array([[x, 0], [x + 0.3, side]]) * reach for side in (-0.4, 0.4)]
    width = max(1.0, reach * 0.03)
    paths = [(turned(line, angle) + centre - corner, np.array([width])) for line in lines]
    veins = draw_lines(paths, max(texture.shape[:2]))[: texture.shape[0], : texture.shape[1]]
    return texture + rgb(veins * np.float32(rng.uniform(-0.15, 0.25)))
