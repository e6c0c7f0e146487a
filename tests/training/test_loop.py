"""The loop against the same steps written out (accumulation, clipping, schedule); the objective's parts."""

import copy
import json

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.nn import functional as F

from convlora.errors import ConfigError
from convlora.head import HeadOutput
from convlora.losses import bce_dice_loss
from convlora.model import Segmenter
from convlora.training.loop import Loop
from convlora.training.objective import make_objective, resolve_loss
from convlora.training.optimizer import make_optimizer
from convlora.training.plan import Plan
from convlora.training.report import Reporter


@pytest.fixture(autouse=True)
def _fresh_accelerate():
    AcceleratorState._reset_state()  # a run in another test leaves its precision behind


KEYS = torch.tensor([11, 12])


class Keyless(nn.Sequential):
    """Takes the keys that the loop gives, and needs none."""

    def forward(self, x, keys):
        assert keys is None or len(keys) == len(x)
        return super().forward(x)


def mse(output, target, keys):
    assert len(keys) == len(target)
    return F.mse_loss(output, target)


@pytest.mark.parametrize("clip", [0.05, 100.0])
def test_steps_written_out(tmp_path, clip):
    torch.manual_seed(0)
    model = Keyless(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    slow = copy.deepcopy(model)
    plan = Plan(steps=4, batch_size=6, micro_batch=2, processes=1, lr=0.05, eval_every=9)
    batches = [{"image": torch.randn(2, 3), "mask": torch.randn(2, 1), "key": KEYS} for _ in range(4 * 3)]

    accelerator = Accelerator(cpu=True)
    trained, optimizer = accelerator.prepare(model, make_optimizer(model, plan.lr, 0.1))
    seen = []
    with Reporter(tmp_path, plan.steps, "x", enabled=False) as reporter:
        loop = Loop(accelerator, trained, optimizer, mse, plan, clip, reporter)
        loop.run(batches, lambda step: seen.append(step) or False)
    assert seen == [1, 2, 3, 4]

    groups = [
        {"params": [p for p in slow.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in slow.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups)
    for step in range(4):
        images = torch.cat([b["image"] for b in batches[3 * step : 3 * step + 3]])
        targets = torch.cat([b["mask"] for b in batches[3 * step : 3 * step + 3]])
        reference.zero_grad()
        F.mse_loss(slow(images, None), targets).backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in slow.parameters()))
        for p in slow.parameters():
            p.grad *= min(1.0, clip / norm)
        for group in reference.param_groups:
            group["lr"] = 0.05 * (1 - step / 4)
        reference.step()
    for got, want in zip(model.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)  # sums in another order, through Adam


def test_clipping_is_at_work():
    """AdamW hardly sees a constant factor on all gradients, so clipping is looked at before the step."""
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            norms = [p.grad.norm() for group in self.param_groups for p in group["params"]]
            seen.append(torch.stack(norms).norm().item())
            return super().step(closure)

    model = Keyless(nn.Linear(3, 1))
    accelerator = Accelerator(cpu=True)
    trained, optimizer = accelerator.prepare(model, Spy(model.parameters(), lr=0.1))
    plan = Plan(steps=1, batch_size=2, micro_batch=2, processes=1, lr=0.1, eval_every=1)
    batch = {"image": 100 * torch.ones(2, 3), "mask": torch.zeros(2, 1), "key": KEYS}
    with Reporter(_nowhere(), 1, "x", enabled=False) as reporter:
        Loop(accelerator, trained, optimizer, mse, plan, 0.5, reporter).run([batch], lambda step: True)
    assert seen == [pytest.approx(0.5, rel=1e-4)]


def test_parts_of_unequal_size_count_by_their_images(tmp_path):
    """Five images where memory ran out are cut into three and two; a mean of two means would be another."""
    torch.manual_seed(0)
    model = Keyless(nn.Linear(3, 1))
    batch = {"image": torch.randn(5, 3), "mask": torch.randn(5, 1), "key": torch.arange(5)}
    whole = F.mse_loss(model(batch["image"], None), batch["mask"])
    expected = torch.autograd.grad(whole, list(model.parameters()))
    optimizer = torch.optim.SGD(model.parameters())
    with Reporter(tmp_path, 1, "x", enabled=False) as reporter:
        plan = Plan(steps=1, batch_size=5, micro_batch=5, processes=1, lr=0.1, eval_every=1)
        loop = Loop(Accelerator(cpu=True), model, optimizer, mse, plan, 1.0, reporter)
        loop.splits = 2
        loss = loop._gradients([batch])
    torch.testing.assert_close(loss, whole.detach())
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def run_with_loss(tmp_path, factors, scaler=None):
    """Train one layer a step for each factor of the loss; its weights after every step."""
    torch.manual_seed(0)
    model, seen = Keyless(nn.Linear(3, 1)), []
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = scaler
    trained, optimizer = accelerator.prepare(model, make_optimizer(model, 0.1, 0.0))
    steps = len(factors)
    plan = Plan(steps=steps, batch_size=1, micro_batch=1, processes=1, lr=0.1, eval_every=steps)
    batch = {"image": torch.ones(1, 3), "mask": torch.zeros(1, 1), "key": KEYS[:1]}
    left = iter(factors)
    with Reporter(tmp_path, steps, "x") as reporter:
        loop = Loop(accelerator, trained, optimizer, lambda *a: mse(*a) * next(left), plan, 1.0, reporter)
        loop.run([batch] * steps, lambda step: seen.append(model[0].weight.detach().clone()))
    return seen


def test_a_step_whose_gradient_is_not_finite_is_left_out_and_told(tmp_path, capsys):
    """One NaN in the weights would stay there for good, and go into both states that a run resumes from."""
    one, two, three = run_with_loss(tmp_path, [1.0, float("nan"), 1.0])
    assert torch.equal(one, two)
    assert not torch.equal(two, three)
    assert three.isfinite().all()
    assert (
        "step 2: the gradient is not finite (the loss is nan), so the step is left out. If this goes on, use "
        "a lower --lr or --precision fp32.\n"
    ) in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] is None for row in rows] == [False, True, False]


def test_a_run_that_learns_nothing_any_more_ends(tmp_path):
    nan = [float("nan")]
    assert len(run_with_loss(tmp_path, nan * 19 + [1.0] + nan * 19)) == 39  # not in a row
    with pytest.raises(ConfigError, match=r"No gradient of the last 20 steps was finite \(the loss is nan\)"):
        run_with_loss(tmp_path, nan * 20)


def test_the_scaler_of_fp16_leaves_a_step_out_itself_and_lowers_its_scale(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    one, two, three = run_with_loss(tmp_path, [1.0, float("inf"), 1.0], scaler)
    assert torch.equal(one, two)
    assert not torch.equal(two, three)
    assert scaler.get_scale() == 4.0


def _nowhere():
    from pathlib import Path

    return Path("unused")


# --- objective ---


def segmenter(backbone, classes=("background", "a"), **options):
    return Segmenter.from_backbone(str(backbone), classes, **options)


def by_image(logits, target):
    up = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
    losses = [bce_dice_loss(one[None], truth[None]) for one, truth in zip(up, target, strict=True)]
    return torch.stack(losses).mean()


def test_binary_objective_is_cross_entropy_and_dice_of_upsampled_logits_plus_balance(small_backbone):
    model = segmenter(small_backbone).train()
    objective = make_objective(model, "default")
    output = model(torch.randn(2, 3, 64, 64))
    target = torch.randint(0, 2, (2, 64, 64))
    balance = sum(block.attn.qkv.aux_loss for block in model.encoder.blocks)
    assert balance > 0
    expected = by_image(output.mask_logits, target)
    torch.testing.assert_close(objective(output, target, [1, 2]), expected + balance)
    model.eval()
    plain = model(torch.randn(2, 3, 64, 64))
    torch.testing.assert_close(objective(plain, target, [1, 2]), by_image(plain.mask_logits, target))


def test_mask_classification_objective_takes_the_raw_output(small_backbone):
    model = segmenter(small_backbone, ("background", "a", "b"), head="mask-classification", method="lora")
    objective = make_objective(model, "default")
    target = torch.randint(0, 3, (1, 64, 64))
    output = HeadOutput(torch.randn(1, 10, 32, 32, requires_grad=True), torch.randn(1, 10, 4))
    objective(output, target, [1]).backward()
    assert output.mask_logits.grad.abs().sum() > 0


def test_points_of_mask_classification_are_drawn_by_the_images_key(small_backbone):
    """Else each step would look at the same places, or they would hang on the batch."""
    model = segmenter(small_backbone, ("background", "a", "b"), head="mask-classification", method="lora")
    objective = make_objective(model, "default")
    target, masks, classes = (
        torch.randint(0, 3, (1, 64, 64)),
        torch.randn(1, 10, 32, 32),
        torch.randn(1, 10, 4),
    )
    one, again, other = (objective(HeadOutput(masks, classes), target, [key]) for key in (1, 1, 2))
    assert one == again
    assert one != other
    both = HeadOutput(masks.repeat(2, 1, 1, 1), classes.repeat(2, 1, 1))
    torch.testing.assert_close(objective(both, target.repeat(2, 1, 1), [1, 2]), (one + other) / 2)


@pytest.mark.parametrize(
    ("classes", "head", "loss"),
    [
        (2, "binary", "default"),
        (2, "binary", "balanced-bce"),
        (3, "per-class", "default"),
        (3, "mask-classification", "default"),
    ],
)
def test_a_batch_weighs_its_images_the_same_however_it_is_cut(small_backbone, classes, head, loss):
    """Also an image that is mostly ignored: means over the batch's pixels would drown it."""
    model = segmenter(small_backbone, [f"class {i}" for i in range(classes)], head=head)
    for block in model.encoder.blocks:
        torch.nn.init.normal_(block.attn.qkv.lora_B, std=0.1)
    objective = make_objective(model.train(), loss)
    image, target, keys = torch.randn(4, 3, 64, 64), torch.randint(0, classes, (4, 64, 64)), [5, 6, 7, 8]
    target[1, 4:] = 255
    target[2] = 255

    def gradients(parts):
        model.zero_grad()
        for part in parts:
            output = model(image[part], keys[part])
            (objective(output, target[part], keys[part]) / len(parts)).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    whole = gradients([slice(0, 4)])
    for parts in ([slice(0, 2), slice(2, 4)], [slice(i, i + 1) for i in (3, 1, 0, 2)]):
        for name, grad in gradients(parts).items():
            # float32 sums over 4096 pixels in another order
            torch.testing.assert_close(
                grad, whole[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert whole["encoder.blocks.0.attn.qkv.gate.w_noise"].abs().max() > 0


def test_names_of_losses():
    assert resolve_loss("default", "binary") == "bce-dice"
    assert resolve_loss("official", "binary") == "structure-official"
    assert resolve_loss("official", "mask-classification") == "mask-classification-official"
    assert resolve_loss("structure", "binary") == "structure"
    with pytest.raises(ConfigError, match="is for head 'per-class'"):
        resolve_loss("ce-dice", "binary")
