"""Numbers that follow from a configuration, and the order of the images."""

import numpy as np
import pytest
import torch

from convlora.adapters.experts import MultiScaleExperts
from convlora.config import make_config
from convlora.errors import ConfigError
from convlora.training import stream
from convlora.training.optimizer import linear_decay, make_optimizer
from convlora.training.plan import Plan, make_plan
from convlora.training.stream import PositionSampler, StreamDataset, place


def config(**values):
    return make_config({"data": "d", "out": "o", **values})


@pytest.mark.parametrize(
    ("values", "images", "steps", "every"),
    [
        ({"epochs": 3}, 10, 8, 3),  # 30 images in batches of 4; an epoch is 3 steps
        ({"max_steps": 5}, 10, 5, 3),
        ({"max_steps": 1000}, 8, 1000, 50),  # at most twenty validations
        ({"epochs": 1}, 2, 1, 1),
        ({"max_steps": 7, "eval_every": 100}, 10, 7, 7),
    ],
)
def test_steps_and_validations(values, images, steps, every):
    plan = make_plan(config(**values), images, embed_dim=192)
    assert (plan.steps, plan.eval_every) == (steps, every)


def test_learning_rate_by_the_encoders_width():
    assert make_plan(config(), 10, embed_dim=768).lr == 1e-4
    assert make_plan(config(), 10, embed_dim=192).lr > 1e-4
    assert make_plan(config(lr=0.5), 10, embed_dim=192).lr == 0.5


def test_batches_over_processes():
    plan = make_plan(config(batch_size=8, micro_batch=2), 10, embed_dim=768, processes=2)
    assert (plan.micro_batch, plan.micro_batches) == (2, 2)
    assert make_plan(config(batch_size=4, micro_batch=9), 10, 768).micro_batch == 4
    assert make_plan(config(batch_size=4), 10, embed_dim=768).micro_batch == 1
    assert make_plan(config(batch_size=4), 10, embed_dim=192).micro_batch == 4


@pytest.mark.parametrize(
    ("values", "processes", "message"),
    [
        ({"batch_size": 5}, 2, "batch_size is 5 and there are 2 processes; .* Set batch_size to 4"),
        ({"batch_size": 6, "micro_batch": 4}, 1, "micro_batch is 4; it must divide the 6 images"),
    ],
)
def test_batches_that_do_not_divide(values, processes, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(config(**values), 10, 768, processes)


def test_an_epoch_shows_every_image_once():
    places = [place(i, 7, seed=3) for i in range(21)]
    for epoch in range(3):
        assert sorted(image for e, image in places if e == epoch) == list(range(7))
    assert places[:7] != [(0, image) for _, image in places[7:14]]  # another order
    assert places == [place(i, 7, seed=3) for i in range(21)]
    assert places != [place(i, 7, seed=4) for i in range(21)]


def test_an_epoch_is_shuffled_once(monkeypatch):
    """Not anew for each of its images; and the order is what it always was."""
    wanted = [
        (epoch, int(index)) for epoch in (0, 1) for index in np.random.default_rng((5, epoch)).permutation(9)
    ]
    drawn, real = [], np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: (drawn.append(seed), real(seed))[1])
    stream._order.cache_clear()
    assert [place(i, 9, seed=5) for i in range(18)] == wanted
    assert [place(i, 9, seed=5) for i in (9, 8, 10, 7)] == [wanted[i] for i in (9, 8, 10, 7)]
    assert drawn == [(5, 0), (5, 1)]
    with pytest.raises(ValueError, match="read-only"):
        stream._order(0, 9, 5)[0] = 1


def test_processes_and_micro_batches_see_the_same_step():
    def step_positions(processes: int, micro: int, step: int) -> set[int]:
        plan = Plan(5, 8, micro, processes, 1e-3, 5)
        found: set[int] = set()
        for process in range(processes):
            batches = list(PositionSampler(plan, process, first_step=0))
            mine = batches[step * plan.micro_batches : (step + 1) * plan.micro_batches]
            assert all(len(batch) == micro for batch in mine)
            found |= {position for batch in mine for position in batch}
        return found

    for step in (0, 3):
        want = set(range(8 * step, 8 * step + 8))
        assert step_positions(1, 8, step) == step_positions(2, 2, step) == step_positions(4, 1, step) == want


def test_sampler_starts_where_it_is_told():
    plan = Plan(5, 4, 2, 1, 1e-3, 5)
    whole = list(PositionSampler(plan, 0, first_step=0))
    assert list(PositionSampler(plan, 0, first_step=2)) == whole[4:]
    assert len(PositionSampler(plan, 0, first_step=2)) == len(whole[4:])


def test_decay_is_linear_to_zero():
    assert [linear_decay(step, 4) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_only_matrices_are_decayed():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 3))
    model[2].requires_grad_(False)
    optimizer = make_optimizer(model, lr=1e-3, weight_decay=0.1)
    decayed, plain = optimizer.param_groups
    assert [p is model[0].weight for p in decayed["params"]] == [True]
    assert {id(p) for p in plain["params"]} == {id(model[0].bias), id(model[1].weight), id(model[1].bias)}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    experts = MultiScaleExperts(3, (1, 2))  # whose biases are of two dimensions
    decayed, plain = make_optimizer(experts, lr=1e-3, weight_decay=0.1).param_groups
    assert [p is experts.weight for p in decayed["params"]] == [True]
    assert [p is experts.bias for p in plain["params"]] == [True]


def test_keys_are_an_images_own_in_every_epoch_and_run():
    class Images(list):
        def get(self, index, epoch):
            return {}

    def keys(seed):
        images = StreamDataset(Images(range(3)), seed)
        return [int(images[position]["key"]) for position in range(9)]

    assert len({*keys(0), *keys(1)}) == 18
    assert keys(0) == keys(0)
