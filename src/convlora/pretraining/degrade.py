"""What cameras and scanners do to an image: shading, blur, noise, tone, compression."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from convlora.pretraining.textures import Float, TextureBank, rgb, value_noise

Bytes = NDArray[np.uint8]


def degrade(rng: np.random.Generator, image: Float, textures: TextureBank) -> Bytes:
    """Random degradations of a float32 (H, W, 3) image of about [0, 1]; uint8 (H, W, 3)."""
    if rng.random() < 0.4:
        image = _shade(rng, image)
    picture = Image.fromarray(to_bytes(image))
    picture = _blur(rng, picture)
    picture = _tone(rng, picture)
    if rng.random() < 0.6:
        picture = Image.fromarray(_noisy(rng, np.asarray(picture), textures))
    if rng.random() < 0.2:
        picture = _compressed(rng, picture)
    return np.asarray(picture)


def to_bytes(image: Float) -> Bytes:
    """[0, 1] to 0..255."""
    return (np.clip(image, 0.0, 1.0) * np.float32(255) + np.float32(0.5)).astype(np.uint8)


def _shade(rng: np.random.Generator, image: Float) -> Float:
    """Illumination gradient or bias field of a receive coil."""
    field = value_noise(rng, image.shape[0], image.shape[1], rng.uniform(1, 2.5))
    strength = np.float32(rng.uniform(0.2, 0.8))
    return image * rgb((1 + strength / 4) - strength * field)  # mostly darker: brighter would clip


def _blur(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    kind = rng.random()
    if kind < 0.45:
        return picture.filter(ImageFilter.GaussianBlur(min(rng.exponential(0.5) + 0.3, 2.0)))
    if kind < 0.6:  # lost resolution
        size = picture.size
        share = rng.uniform(0.5, 0.9)
        small = picture.resize((int(size[0] * share), int(size[1] * share)), Image.Resampling.BILINEAR)
        return small.resize(size, Image.Resampling.BILINEAR)
    return picture


def _tone(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Greyscale, then gamma, contrast, brightness and colour cast in one table for each channel."""
    if rng.random() < 0.3:
        picture = picture.convert("L").convert("RGB")
        gains = np.ones((3, 1))
    else:
        gains = rng.normal(1.0, 0.08, (3, 1))
    levels = np.linspace(0, 1, 256)[None]
    if rng.random() < 0.12:
        levels = 1 - levels
    levels = levels ** np.exp(rng.normal(0, 0.25))
    levels = (levels - 0.5) * rng.uniform(0.6, 1.2) + 0.5 + rng.normal(0, 0.05)
    table = np.clip(levels * gains * 255, 0, 255).astype(np.uint8)
    return picture.point(table.ravel().tolist())


def _noisy(rng: np.random.Generator, image: Bytes, textures: TextureBank) -> Bytes:
    height, width = image.shape[:2]
    noise = textures.grain(rng, height, width)
    if rng.random() < 0.5:
        noise = rgb(noise[..., 0])
    result = image + noise * np.float32(min(rng.exponential(6.0) + 1.0, 25.0))
    return np.clip(result, 0, 255).astype(np.uint8)


def _compressed(rng: np.random.Generator, picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(rng.integers(25, 85)))
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")
