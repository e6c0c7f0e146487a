"""Thin structures: cracks, roads, vessels, fibres."""

import numpy as np
from numpy.typing import NDArray

from convlora.pretraining.shapes import Drawing, Points, draw_lines, random_walk
from convlora.pretraining.textures import Float, TextureBank, luma, random_colour, rgb, value_noise

Path = tuple[Points, NDArray[np.float64]]


def draw_curves(rng: np.random.Generator, size: int, textures: TextureBank) -> Drawing:
    """One to six curvilinear networks; each is an instance, all of them together are the coarse mask."""
    drawing = Drawing.on(_ground(rng, size, textures))
    networks = 1 if rng.random() < 0.55 else int(rng.integers(2, 7))
    width = float(np.exp(rng.uniform(np.log(1.0), np.log(9.0)))) * size / 256
    colour = _line_colour(rng, drawing.image)
    for number in range(1, networks + 1):
        if rng.random() < 0.3:
            colour = _line_colour(rng, drawing.image)
        alpha = _visible_network(rng, size, width * rng.uniform(0.7, 1.4), networks)
        _blend(rng, drawing, alpha, colour)
        covered = alpha >= 0.4
        drawing.instances[covered] = number
        drawing.coarse[covered] = 1
    return drawing


def _ground(rng: np.random.Generator, size: int, textures: TextureBank) -> Float:
    if rng.random() < 0.35:
        return textures.photo(rng, size, size)
    ground = textures.texture(rng, size, size, contrast=rng.uniform(0.02, 0.3))
    if rng.random() < 0.5:
        ground = ground + rgb(textures.grain(rng, size, size)[..., 0] * np.float32(rng.uniform(0.02, 0.1)))
    return ground


def _line_colour(rng: np.random.Generator, image: Float) -> Float:
    """Darker or lighter than the ground by a margin that its own variation does not hide."""
    mean = image[::8, ::8].mean((0, 1))
    spread = float(luma(image[::8, ::8]).std())
    margin = rng.uniform(0.18, 0.5) + 1.5 * spread
    brightness = float(luma(mean))
    sign = -1.0 if rng.uniform(0.3, 0.7) < brightness else 1.0  # towards the end that has room
    tint = (random_colour(rng) - 0.5) * np.float32(0.3 * rng.integers(2))
    return np.clip(mean + sign * margin + tint, 0.0, 1.0).astype(np.float32)


def _visible_network(rng: np.random.Generator, size: int, width: float, networks: int) -> Float:
    """Coverage of a network; tries thrice for one of which a fair length lies inside the image."""
    for _ in range(3):
        alpha = draw_lines(_network(rng, size, width, networks), size)
        if alpha.sum() > 0.3 * size * width:
            break
    return alpha


def _network(rng: np.random.Generator, size: int, width: float, networks: int) -> list[Path]:
    kind = rng.random()
    if kind < 0.15:
        return _grid(rng, size, width)
    wiggle = rng.choice([0.08, 0.2, 0.45])
    step = size / rng.uniform(25, 60)
    branches = 0 if kind < 0.35 else int(rng.integers(1, 16 if networks == 1 else 5))
    paths = [_path(rng, _edge_point(rng, size), size, step, wiggle, width)]
    if networks == 1 and rng.random() < 0.5:
        paths += [
            _path(rng, _edge_point(rng, size), size, step, wiggle, width) for _ in range(rng.integers(1, 4))
        ]
    for _ in range(branches):
        parent, widths = paths[rng.integers(len(paths))]
        joint = int(rng.integers(len(parent) - 1))
        along = parent[joint + 1] - parent[joint]
        angle = np.arctan2(along[1], along[0]) + rng.choice([-1, 1]) * rng.uniform(0.3, 1.4)
        steps = int(rng.integers(6, 40))
        points = random_walk(rng, parent[joint], angle, steps, step, wiggle)
        paths.append((points, _widths(rng, widths[joint] * rng.uniform(0.4, 0.95), steps)))
    return paths


def _edge_point(rng: np.random.Generator, size: int) -> tuple[Points, float]:
    """Start and direction of a path: mostly from the border inwards."""
    if rng.random() < 0.3:
        return rng.uniform(0.1, 0.9, 2) * size, rng.uniform(0, 2 * np.pi)
    angle = rng.uniform(0, 2 * np.pi)
    start = size / 2 - np.array([np.cos(angle), np.sin(angle)]) * size * 0.55
    start += rng.uniform(-0.3, 0.3, 2) * size
    return np.clip(start, 0, size - 1), angle + rng.normal(0, 0.3)


def _path(
    rng: np.random.Generator,
    origin: tuple[Points, float],
    size: int,
    step: float,
    wiggle: float,
    width: float,
) -> Path:
    steps = int(rng.uniform(0.4, 1.4) * size / step)
    return random_walk(rng, *origin, steps, step, wiggle), _widths(rng, width, steps)


def _widths(rng: np.random.Generator, width: float, steps: int) -> NDArray[np.float64]:
    taper = np.linspace(1, rng.choice([0.3, 0.7, 1.0]), steps)
    wave = 1 + rng.uniform(0, 0.5) * np.sin(np.linspace(0, rng.uniform(0, 20), steps))
    return width * taper * wave


def _grid(rng: np.random.Generator, size: int, width: float) -> list[Path]:
    """Streets: two bundles of nearly parallel lines."""
    angle = rng.uniform(0, np.pi)
    paths = []
    for direction in (angle, angle + np.pi / 2 + rng.normal(0, 0.15)):
        ahead = np.array([np.cos(direction), np.sin(direction)])
        for offset in np.sort(rng.uniform(-0.6, 0.6, rng.integers(1, 5))):
            start = size / 2 - ahead * size * 0.8 + np.array([-ahead[1], ahead[0]]) * offset * size
            points = random_walk(rng, start, direction, 30, size * 1.6 / 30, rng.choice([0.0, 0.03, 0.08]))
            paths.append((points, np.full(30, width * rng.uniform(0.6, 1.2))))
    return paths


def _blend(rng: np.random.Generator, drawing: Drawing, alpha: Float, colour: Float) -> None:
    size = alpha.shape[0]
    strength = np.float32(rng.uniform(0.75, 1.0))
    if rng.random() < 0.5:  # fades along its way
        alpha = alpha * (0.7 + 0.3 * value_noise(rng, size, size, rng.uniform(3, 10)))
    drawing.image += rgb(alpha * strength) * (colour - drawing.image)
