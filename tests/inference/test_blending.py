"""Blended scores against the weighted mean written out, in any order, and across the borders of tiles."""

import numpy as np
import pytest
import torch

from convlora.head import SegmentationHead
from convlora.inference.blending import blend, score_limit
from convlora.inference.tiles import Tiles, plan_tiles

#: One part of the sum; see `blending`. A blended score is a sum of at most nine rounded parts, and of float32
#: products whose error is 2^-24 of them: for scores below eight, 2^-21, and twice that for the weights.
PART = 2.0**-20
TOLERANCE = 9 * PART / 2 + 3 * 2.0**-21


def run(size, tiles, score, **options):
    """Blended scores (C, H, W), and the rows in the order in which they were handed over."""
    parts = []
    blend(size, tiles, score, lambda top, rows: parts.append((top, rows.clone())), **options)
    rows = [row for top, part in parts for row in range(top, top + part.shape[1])]
    assert sorted(rows) == list(range(size[0]))  # each once
    return torch.cat([part for _, part in sorted(parts, key=lambda p: p[0])], dim=1), rows


def noise(tile, channels=2):
    """Scores of a tile that have nothing to do with those of its neighbours."""
    generator = torch.Generator().manual_seed(1000 * tile.top + tile.left)
    return torch.randn(channels, tile.bottom - tile.top, tile.right - tile.left, generator=generator)


def constant(values):
    """A score for each tile, the same at all its pixels."""
    found = iter(values)
    return lambda tile: torch.full((1, tile.bottom - tile.top, tile.right - tile.left), next(found))


SIZE, TILES = (150, 210), Tiles(64, 20)


def test_weighted_mean_written_out():
    plan = plan_tiles(SIZE, TILES)
    want = np.zeros((2, *SIZE))
    for tile in plan:
        for y in range(tile.top, tile.bottom):
            weights = tile.row_weights[y - tile.top] * tile.column_weights
            want[:, y, tile.left : tile.right] += weights * noise(tile)[:, y - tile.top].double().numpy()
    got, rows = run(SIZE, plan, noise)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)
    assert want.std() > 0.1
    assert rows == list(range(SIZE[0]))


def test_any_order_gives_the_same_bits():
    plan = plan_tiles(SIZE, TILES)
    want, _ = run(SIZE, plan, noise)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(plan))
        got, rows = run(SIZE, plan, noise, order=order)
        assert torch.equal(got, want)
        assert rows != sorted(rows)
    # the tiles do overlap, and differ where they do: a sum of floats would depend on the order
    first, second = plan[0], plan[1]
    assert first.right > second.left
    shared = first.right - second.left
    assert not torch.equal(noise(first)[..., -shared:], noise(second)[..., :shared])
    parts = [torch.rand(99, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    assert not torch.equal(parts[0] + parts[1] + parts[2], parts[2] + parts[1] + parts[0])


@pytest.mark.parametrize("overlap", [1, 7, 20, 31])
@pytest.mark.parametrize("length", [65, 100, 108, 109, 110, 150])
def test_tiles_that_disagree_by_a_constant(length, overlap):
    """From one level to the next without a step back, by 1 / overlap of the difference a pixel."""
    plan = plan_tiles((1, length), Tiles(64, overlap))
    levels = [-3.0, 5.0, 9.0, 10.0, 14.0, 15.0][: len(plan)]
    got, _ = run((1, length), plan, constant(levels))
    steps = got[0, 0].diff()
    assert got[0, 0, 0] == levels[0]
    assert got[0, 0, -1] == levels[-1]
    assert steps.min() >= -4 * PART
    for x, step in enumerate(steps.tolist()):
        there = [level for level, t in zip(levels, plan, strict=True) if t.left <= x + 1 and x < t.right]
        assert step <= (max(there) - min(there)) / overlap + 4 * PART + 1e-6


def test_without_overlap_they_jump():
    got, _ = run((1, 128), plan_tiles((1, 128), Tiles(64, 0)), constant([-3.0, 5.0]))
    assert got[0, 0].diff().tolist() == [8.0 if x == 63 else 0.0 for x in range(127)]


def test_a_pointwise_model_is_the_same_in_tiles():
    picture = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(0))

    def score(tile):
        return picture[:, tile.top : tile.bottom, tile.left : tile.right].sin() * 7

    got, _ = run(SIZE, plan_tiles(SIZE, TILES), score)
    np.testing.assert_allclose(got, picture.sin() * 7, rtol=0, atol=TOLERANCE)


def test_seams_of_a_model_that_sees_its_tile_only():
    """A smooth model that subtracts a mean over its tile: steps are its own and those of the weights."""
    y, x = torch.meshgrid(*(torch.arange(n) / 40 for n in SIZE), indexing="ij")
    field = (y.sin() + (1.3 * x).cos() + x)[None]
    plan = plan_tiles(SIZE, TILES)
    scored = {}

    def score(tile):
        part = field[:, tile.top : tile.bottom, tile.left : tile.right]
        scored[tile.top, tile.left] = part - part.mean()
        return scored[tile.top, tile.left]

    got, _ = run(SIZE, plan, score)
    low, high = torch.full(SIZE, torch.inf), torch.full(SIZE, -torch.inf)
    for tile in plan:
        part = slice(tile.top, tile.bottom), slice(tile.left, tile.right)
        low[part] = torch.minimum(low[part], scored[tile.top, tile.left][0])
        high[part] = torch.maximum(high[part], scored[tile.top, tile.left][0])
    apart = high - low
    own = field.diff(dim=2).abs().max()
    bound = own + torch.maximum(apart[:, 1:], apart[:, :-1]) / TILES.overlap
    steps = got[0].diff(dim=1).abs()
    assert (steps <= bound + 2.0**-16).all()  # as docs/commands.md says; two scores, each within TOLERANCE
    assert apart.max() > 20 * own  # without blending the steps would be many times as large


def test_rows_are_forgotten(monkeypatch):
    """Tiles row by row: never more sums than the rows of one tile."""
    made, done, held = [], [], []
    zeros = torch.zeros

    def watched(*shape, **options):
        made.append(zeros(*shape, **options))
        return made[-1]

    def receive(_, rows):
        held.append(sum(sums.numel() for sums in made) - sum(done))
        done.append(rows.numel())

    monkeypatch.setattr(torch, "zeros", watched)
    blend((640, 90), plan_tiles((640, 90), Tiles(64, 16)), noise, receive)
    assert sum(done) == sum(sums.numel() for sums in made) == 2 * 640 * 90
    assert len(made) > 10
    assert 0 < max(held) <= 2 * 64 * 90


def test_limits():
    plan = plan_tiles((1, 100), Tiles(64, 20))
    got, _ = run((1, 100), plan, constant([1e9, -torch.inf]))
    assert (got[0, 0, 0], got[0, 0, -1]) == (1024, -1024)
    fine, _ = run((1, 100), plan, constant([3e-9, 0.0]), limit=4.0)  # parts of 2^-28
    assert (fine[0, 0, 0], fine[0, 0, -1]) == (2.0**-28, 0)
    assert run((1, 100), plan, constant([3e-9, 0.0]))[0].max() == 0


def test_limit_of_a_head():
    assert score_limit(SegmentationHead("binary", 2, 0, 8)) == 1024
    assert score_limit(SegmentationHead("per-class", 3, 0, 8)) == 1024
    assert score_limit(SegmentationHead("mask-classification", 3, 10, 8)) == 16  # a sum over ten masks
