"""What every loss of the table must hold."""

import pytest
import torch
from loss_samples import SIZE, labels, logits, names, value_and_gradients

from convlora.errors import ConfigError, DataError
from convlora.losses import LOSSES
from convlora.losses.common import full_precision

every_loss = pytest.mark.parametrize("name", names())
region_loss = pytest.mark.parametrize("name", names("binary", "per-class"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(3)


@every_loss
@pytest.mark.parametrize("garbage", [7.0, -1e4, float("nan")])
def test_ignored_pixels_change_neither_value_nor_gradient(name, garbage):
    loss = LOSSES[name]
    target, (masks, classes) = labels(loss.head), logits(loss.head)
    ignored = (target == 255)[:, None].expand_as(masks)
    value, gradient, *rest = value_and_gradients(loss, masks, classes, target)
    changed = value_and_gradients(loss, masks.masked_fill(ignored, garbage), classes, target)
    assert value.isfinite()
    for got, expected in zip(changed, (value, gradient, *rest), strict=True):
        assert torch.equal(got, expected)
    assert not gradient[ignored].any()
    # active: the labelled pixels do count
    moved = value_and_gradients(loss, torch.where(ignored, masks, masks / 2), classes, target)
    assert not torch.allclose(moved[0], value)
    assert gradient[~ignored].any()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(name, dtype):
    loss = LOSSES[name]
    target, (masks, classes) = labels(loss.head), logits(loss.head)
    half = [x if x is None else x.to(dtype) for x in (masks, classes)]
    rounded = [x if x is None else x.float() for x in half]
    expected = value_and_gradients(loss, *rounded, target)
    with torch.autocast("cpu", dtype=dtype):
        got = value_and_gradients(loss, *half, target)
    assert got[0].dtype == torch.float32
    assert torch.equal(got[0], expected[0])
    for gradient, reference in zip(got[1:], expected[1:], strict=True):
        assert gradient.dtype == dtype
        assert torch.equal(gradient, reference.to(dtype))


@every_loss
def test_autocast_changes_nothing_of_float32_logits(name):
    loss = LOSSES[name]
    target, (masks, classes) = labels(loss.head), logits(loss.head)
    expected = value_and_gradients(loss, masks, classes, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = value_and_gradients(loss, masks, classes, target)
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16  # active: it is on
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a, b)


def test_full_precision_promotes_all_tensors_and_switches_autocast_off():
    @full_precision
    def product(a, b, *, c):
        return a @ b @ c, torch.is_autocast_enabled("cpu")

    a, b, c = (torch.randn(3, 3) for _ in range(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, autocast = product(a, b.bfloat16(), c=c.half())
    assert not autocast
    assert torch.equal(got, a @ b.bfloat16().float() @ c.half().float())
    assert product(a.double(), b.double(), c=c.double())[0].dtype == torch.float64


@every_loss
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits_give_finite_values_and_gradients(name, scale):
    loss = LOSSES[name]
    target, (masks, classes) = labels(loss.head), logits(loss.head)
    extreme = scale * masks.sign()
    classes = classes if classes is None else scale * classes.sign()
    got = value_and_gradients(loss, extreme, classes, target)
    assert all(x.isfinite().all() for x in got)
    assert got[0] > 0.1  # half of the pixels are wrong


@region_loss
def test_perfect_logits_give_zero(name):
    loss = LOSSES[name]
    target = labels(loss.head)
    masks, _ = logits(loss.head)
    truth = target if loss.head == "binary" else torch.nn.functional.one_hot(target % 255, masks.shape[1])
    truth = truth[:, None] == 1 if loss.head == "binary" else truth.movedim(3, 1) == 1
    perfect = torch.where(truth, 30.0, -30.0)
    assert loss(perfect, None, target).item() == pytest.approx(0, abs=1e-6)  # float32 sums over 168 pixels
    assert loss(-perfect, None, target) > 0.8


@region_loss
def test_without_labels_value_and_gradient_are_zero(name):
    loss = LOSSES[name]
    masks, _ = logits(loss.head)
    value, gradient = value_and_gradients(loss, masks, None, torch.full((2, *SIZE), 255))
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("name", names("binary"))
def test_one_class_only_is_finite(name):
    loss = LOSSES[name]
    masks, _ = logits(loss.head)
    for label in (0, 1):
        got = value_and_gradients(loss, masks, None, torch.full((2, *SIZE), label))
        assert all(x.isfinite().all() for x in got)


@every_loss
def test_labels_may_be_uint8(name):
    loss = LOSSES[name]
    target, (masks, classes) = labels(loss.head), logits(loss.head)
    expected = value_and_gradients(loss, masks, classes, target)
    got = value_and_gradients(loss, masks, classes, target.to(torch.uint8))
    assert torch.equal(got[0], expected[0])


@every_loss
@pytest.mark.parametrize("wrong", [9, -1])
def test_unknown_label_is_an_error(name, wrong):
    loss = LOSSES[name]
    target, (masks, classes) = labels(loss.head), logits(loss.head)
    target[0, 7, 7] = wrong
    with pytest.raises(DataError, match=rf"label {wrong}; labels are 0 to [13], and 255 is ignored"):
        loss(masks, classes, target)


@region_loss
def test_other_size_is_an_error(name):
    loss = LOSSES[name]
    target, (masks, _) = labels(loss.head), logits(loss.head, size=(6, 7))
    with pytest.raises(DataError, match=r"6, 7\) and \(2, 12, 14\)\. Resample the logits"):
        loss(masks, None, target)


@pytest.mark.parametrize("name", names("binary"))
def test_several_channels_for_a_binary_loss_are_an_error(name):
    masks, _ = logits("per-class")
    with pytest.raises(ConfigError, match="one channel, got 4"):
        LOSSES[name](masks, None, labels("binary"))
