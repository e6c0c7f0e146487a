"""Trained parameters of every method on the real SAM sizes, counted by hand; no memory is taken."""

import re
from pathlib import Path

import pytest

from convlora.adapters import methods
from convlora.model import count_on_preset

DECODER = 3_505_536
SIZES = {"base": (768, 12, 4), "large": (1024, 24, 4), "huge": (1280, 32, 4)}  # width, blocks, global ones


def bitfit(C, n, _):
    return (
        n * (2 * C + 3 * C + C + 4 * C + C) + C + 2 * 256
    )  # norms, qkv, proj, MLP; patches; norms of the neck


def adapter(C, n, _):
    return n * (6 * C + 6 + 6 * C + C)


def sam_adapter(C, n, _):
    d = C // 32
    return 16 * 16 * 3 * d + d + C * d + d + n * (d * d + d) + d * C + C


def vpt(C, n, _):
    return n * 12 * C


def ssf(C, n, _):
    return n * 2 * (C + 3 * C + C + C + 4 * C + C) + 2 * C


def lst(C, n, whole):
    d = round(0.075 * C / 16) * 16
    block = 2 * 2 * d + (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d)
    positions = 2 * 16 * ((n - whole) * 27 + whole * 127)
    rungs = (n + 1) * (C * d + d)
    return n * block + positions + rungs + n + 2 * d + d * C + C


def lora(C, n, _):
    return n * 3 * (C + 3 * C)


def conv_lora(C, n, _):
    return lora(C, n, _) + n * (2 * 3 * 8 + 8 * (9 * 3 * 3 + 3))


def multi_scale(C, n, _):
    return conv_lora(C, n, _) - n * 2 * 3 * 8  # no gate


BY_HAND = {
    "conv-lora-multiscale": multi_scale,
    "bitfit": bitfit,
    "adapter": adapter,
    "sam-adapter": sam_adapter,
    "vpt": vpt,
    "ssf": ssf,
    "lst": lst,
    "lora": lora,
    "conv-lora": conv_lora,
    "decoder-only": lambda *_: 0,
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", BY_HAND)
def test_count(method, size):
    counted = count_on_preset(f"facebook/sam-vit-{size}", method).trainable
    assert counted == DECODER + BY_HAND[method](*SIZES[size])


def test_readme_counts_every_method():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    listed = {
        name: (int(count.replace(",", "")), float(share))
        for name, count, share in re.findall(r"^\| `([a-z-]+)` \| ([\d,]+) \(([\d.]+) %\) \|", readme, re.M)
    }
    counted = {name: count_on_preset("facebook/sam-vit-huge", name) for name in methods()}
    assert listed == {name: (c.trainable, round(100 * c.share, 2)) for name, c in counted.items()}


def test_vit_h_is_as_large_as_in_the_paper():
    """Millions; where the paper's size is not known, about 4."""
    counted = {m: count_on_preset("facebook/sam-vit-huge", m).trainable / 1e6 for m in methods()}
    known = {"decoder-only": 3.51, "lora": 4.00, "conv-lora": 4.02, "vpt": 3.997, "bitfit": 3.96}
    for name, millions in known.items():
        assert counted[name] == pytest.approx(millions, abs=0.006), name
    assert counted["lst"] == pytest.approx(11.49, rel=0.02)
    for name in ("adapter", "sam-adapter", "ssf"):
        assert 3.6 < counted[name] < 4.5, name
