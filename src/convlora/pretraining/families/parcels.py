"""Seen from above: land parcels and buildings; also cell-like Voronoi tilings."""

import numpy as np
from scipy.spatial import Voronoi

from convlora.pretraining.shapes import (
    MAX_IDS,
    Drawing,
    Ids,
    Points,
    draw_ids,
    draw_lines,
    rasterise,
    rectilinear,
    turned,
)
from convlora.pretraining.textures import Float, TextureBank, contrasting_colour, random_colour, rgb


def draw_parcels(rng: np.random.Generator, size: int, textures: TextureBank) -> Drawing:
    """Tiling of the whole image into fields; the coarse map joins fields of the same crop."""
    cells = _voronoi(rng, size) if rng.random() < 0.4 else _subdivided(rng, size)
    ids = draw_ids(cells, size)
    crops = int(rng.integers(2, 7))
    crop_of = rng.integers(1, crops + 1, len(cells) + 1).astype(np.uint8)
    crop_of[0] = 0
    coarse = crop_of[ids]
    base = random_colour(rng)
    spread = rng.uniform(0.3, 1.0)
    colours = np.stack([base + (random_colour(rng) - base) * spread for _ in range(crops + 1)])
    own = rng.normal(0, rng.uniform(0.02, 0.08), (len(cells) + 1, 3))
    image = (colours[crop_of] + own).astype(np.float32)[ids]
    image += _shared_texture(rng, size, textures, coarse, crops)
    if rng.random() < 0.6:
        _borders(rng, cells, size, image)
    return Drawing(image, ids, coarse)


def _shared_texture(
    rng: np.random.Generator, size: int, textures: TextureBank, coarse: Ids, crops: int
) -> Float:
    """Zero-mean textures, one for half of the crops each."""
    first, second = (
        textures.texture(rng, size, size, np.zeros(3, np.float32), rng.uniform(0.03, 0.25)) for _ in range(2)
    )
    second += rgb((coarse > crops // 2).astype(np.float32)) * (first - second)
    return second


def _borders(rng: np.random.Generator, cells: list[Points], size: int, image: Float) -> None:
    width = rng.uniform(0.8, 3.0)
    paths = [(np.concatenate([cell, cell[:1]]), np.full(len(cell), width)) for cell in cells]
    alpha = draw_lines(paths, size) * np.float32(rng.uniform(0.4, 1.0))
    image += rgb(alpha) * (random_colour(rng) - image)


def _voronoi(rng: np.random.Generator, size: int) -> list[Points]:
    sites = rng.uniform(0, size, (int(rng.integers(8, 90)), 2))
    mirrored = [sites]
    for axis in (0, 1):
        for edge in (0.0, float(size)):
            copy = sites.copy()
            copy[:, axis] = 2 * edge - copy[:, axis]
            mirrored.append(copy)
    diagram = Voronoi(np.concatenate(mirrored))
    return [diagram.vertices[diagram.regions[diagram.point_region[i]]] for i in range(len(sites))]


def _subdivided(rng: np.random.Generator, size: int) -> list[Points]:
    """Cut a turned square into quadrilaterals until they are small."""
    half = size * 0.75
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float) * half
    pending = [turned(square, rng.uniform(0, np.pi)) + size / 2]
    least = size * rng.uniform(0.08, 0.3)
    done: list[Points] = []
    while pending:
        quad = pending.pop()
        if (quad.max(0) <= 0).any() or (quad.min(0) >= size).any():
            continue
        sides = np.linalg.norm(quad - np.roll(quad, -1, axis=0), axis=1)
        widest = int(np.argmax(sides[:2] + sides[2:]))
        if sides[widest] < 2 * least or (sides[widest] < 3.5 * least and rng.random() < 0.2):
            done.append(quad)
            continue
        a, b, c, d = np.roll(quad, -widest, axis=0)
        first, second = np.clip(rng.uniform(0.3, 0.7) + rng.normal(0, 0.04, 2), 0.2, 0.8)
        p, q = a + (b - a) * first, d + (c - d) * second
        pending += [np.stack([a, p, q, d]), np.stack([p, b, c, q])]
    return done[:MAX_IDS]


def draw_buildings(rng: np.random.Generator, size: int, textures: TextureBank) -> Drawing:
    """Roofs with shadows on ground; roof faces are instances where the roof has two, buildings are coarse."""
    ground = textures.photo(rng, size, size) if rng.random() < 0.4 else textures.texture(rng, size, size)
    drawing = Drawing.on(ground)
    angle, radius = rng.uniform(0, np.pi), size * rng.uniform(0.03, 0.12)
    shadow = turned(np.array([1.0, 0.0]), rng.uniform(0, 2 * np.pi)) * radius * rng.uniform(0.1, 0.6)
    spacing = radius * rng.uniform(2.2, 4.5)
    side = np.arange(spacing / 2, size, spacing)
    centres = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    centres = turned(centres - size / 2, angle) + size / 2
    rng.shuffle(centres)
    centres = centres[: max(3, min(int(len(centres) * rng.uniform(0.4, 1.0)), 60))]
    mean = ground[::8, ::8].mean((0, 1))
    palette = [contrasting_colour(rng, mean, 0.15) for _ in range(int(rng.integers(1, 4)))]
    number = 1
    for building, centre in enumerate(centres, start=1):
        unit = rectilinear(rng) * radius * rng.uniform(0.5, 1.1, 2)
        outline = turned(unit, angle + rng.normal(0, 0.05)) + centre + rng.normal(0, 0.1, 2) * radius
        colour = palette[rng.integers(len(palette))] + rng.normal(0, 0.04, 3).astype(np.float32)
        number = _building(rng, drawing, outline, shadow, colour, (number, building), textures)
    return drawing


def _building(
    rng: np.random.Generator,
    drawing: Drawing,
    outline: Points,
    shadow: Points,
    colour: Float,
    ids: tuple[int, int],
    textures: TextureBank,
) -> int:
    """Paint one and return the next free instance id."""
    size, (number, building) = drawing.image.shape[0], ids
    stamp, shade = rasterise(outline, size), rasterise(outline + shadow, size)
    if stamp is None or number >= MAX_IDS - 1:
        return number
    if shade is not None:
        drawing.image[shade.window] *= rgb(1 - 0.6 * shade.alpha)
    height, width = stamp.alpha.shape
    drawing.paint(stamp, textures.texture(rng, height, width, colour, rng.uniform(0, 0.15)), number, building)
    if len(outline) == 4 and rng.random() < 0.4:  # the second face of a gabled roof
        middle = (outline + np.roll(outline, -1, axis=0)) / 2
        face = rasterise(np.stack([outline[0], middle[0], middle[2], outline[3]]), size)
        if face is not None:
            face = face.within(stamp, size)
            drawing.paint(face, np.clip(colour * np.float32(rng.choice([0.7, 1.3])), 0, 1), number + 1, None)
            return number + 2
    return number + 1
