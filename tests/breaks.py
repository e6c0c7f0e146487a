"""Ways to break a data set of `write_shapes`: each gives a function of its folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

MASK, PICTURE = "train/masks/train_00.png", "train/images/train_00.png"


class Case(NamedTuple):
    """What is broken, and what must be said: code, severity, file and a word of the remedy."""

    name: str
    break_it: Callable[[Path], object]
    code: str = ""
    severity: str = "error"
    file: str = ""
    remedy: str = ""
    found: str = ""


def assert_told(case, problems):
    alike = [p for p in problems if p["code"] == case.code]
    assert alike, f"{case.code} is not among {problems}"
    assert {p["severity"] for p in alike} == {case.severity}
    told = [p for p in alike if case.file in f"{p['file']} {p['found']}" and case.found in p["found"]]
    assert told, alike
    assert any(case.remedy in p["rule"] + " " + p["fix"] for p in told), told


def values_of(path):
    return np.array(Image.open(path))


def put(name, array, **options):
    def save(root):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(array)).save(path, **options)

    return save


def edit(name, change, new=None, **options):
    """Change the pixels of a file, and its name."""

    def save(root):
        array = change(values_of(root / name))
        (root / name).unlink()
        Image.fromarray(array).save(root / (new or name), **options)

    return save


def edit_all(change, folder="*/masks", suffix=".png", **options):
    def save(root):
        for path in sorted(root.glob(f"{folder}/*.png")):
            array = change(values_of(path))
            path.unlink()
            Image.fromarray(array).save(path.with_suffix(suffix), **options)

    return save


def convert(name, mode, new=None, **options):
    def save(root):
        image = Image.open(root / name).convert(mode)
        (root / name).unlink()
        image.save(root / (new or name), **options)

    return save


def write(name, data):
    def save(root):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())

    return save


def remove(name):
    def act(root):
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def move(old, new):
    def act(root):
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        (root / old).rename(root / new)

    return act


def copy(old, new):
    def act(root):
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(root / old, root / new) if (root / old).is_dir() else shutil.copy(
            root / old, root / new
        )

    return act


def both(*acts):
    def act(root):
        for one in acts:
            one(root)

    return act


def cut(name, share, new=None, **options):
    def act(root):
        Image.open(root / name).convert("RGB").save(root / (new or name), **options)
        data = (root / (new or name)).read_bytes()
        if new:
            (root / name).unlink()
        (root / (new or name)).write_bytes(data[: int(len(data) * share)])

    return act


def link(name, target):
    def act(root):
        (root / name).unlink()
        (root / name).symlink_to(root / target)

    return act


def rename_all(folder, rule):
    def act(root):
        for path in sorted(root.glob(f"{folder}/*.png")):
            path.rename(path.with_name(rule(path)))

    return act


def frames(name, count, new):
    def act(root):
        pages = [Image.fromarray(np.full((60, 40), 40 * i, np.uint8)) for i in range(count)]
        (root / name).unlink()
        pages[0].save(root / new, save_all=True, append_images=pages[1:])

    return act


def turn(name, value):
    def act(root):
        exif = Image.Exif()
        exif[0x0112] = value
        Image.open(root / name).save(root / name, exif=exif)

    return act


def palette_png(root):
    for path in root.glob("*/masks/*.png"):
        image = Image.fromarray(values_of(path)).convert("P")
        image.putdata(values_of(path).ravel().tolist())
        image.putpalette([200, 30, 30, 30, 200, 30])
        image.save(path)


def soften(ids):
    """Smooth edges, as an export with anti-aliasing gives them."""
    small = Image.fromarray((ids * 255).astype(np.uint8)).resize((27, 31))
    return np.array(small.resize(ids.shape[::-1], Image.Resampling.BICUBIC))


def with_pixels(ids, *values):
    ids = ids.copy()
    ids[0, : len(values)] = values
    return ids


def float_mask(bad):
    def change(ids):
        out = ids.astype(np.float32)
        out[0, :2] = bad
        return out

    return change


def colours(alpha=False):
    def change(ids):
        rgb = np.zeros((*ids.shape, 4 if alpha else 3), np.uint8)
        rgb[ids > 0, 0] = 200
        if alpha:
            rgb[..., 3] = 255
        return rgb

    return change


def same_picture(suffix):
    """The picture of train_05 as val_00, in another format, with its own mask."""

    def act(root):
        Image.open(root / "train/images/train_05.png").save(root / f"val/images/val_00{suffix}")
        shutil.copy(root / "train/masks/train_05.png", root / "val/masks/val_00.png")
        if suffix != ".png":
            (root / "val/images/val_00.png").unlink()

    return act


def same_masks(root):
    for path in root.glob("*/masks/*.png"):
        Image.open(path.parents[1] / "images" / path.name).resize((40, 60)).save(
            path.parents[1] / "images" / path.name
        )
        if path != root / MASK:
            shutil.copy(root / MASK, path)


def three(text):
    return write("classes.txt", text)


def clear(root):
    shutil.rmtree(root)
    root.mkdir()


def as_file(root):
    shutil.rmtree(root)
    root.write_text("x")


def one_size(shape):
    return both(
        put(PICTURE, np.arange(np.prod(shape) * 3).reshape(*shape, 3).astype(np.uint8)),
        put(MASK, np.arange(np.prod(shape)).reshape(shape).astype(np.uint8) % 2),
    )


def deep16(ids):
    return ids.astype(np.uint16) * 65535
