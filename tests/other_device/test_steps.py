"""A training step of every method on a device that is not the CPU: values, gradients, types and waits."""

import copy

import device
import pytest
import torch

from convlora.adapters import methods
from convlora.backbone.initialise import random_sam
from convlora.frozen import hold_frozen_in
from convlora.model import Segmenter, SegmenterConfig
from convlora.training.objective import make_objective
from small import SMALL

LEARNED = {"routing": "soft", "scope": "image", "start": "zero", "temperature": 0.03, "gain": 8.0}
ROUTERS = [{"routing": "switch"}, {"top_k": 2}, {"scope": "image"}, {"routing": "soft-pixel"}, LEARNED]
METHODS = [*((name, {}) for name in methods()), *(("conv-lora", options) for options in ROUTERS)]
HEADS = [
    ("binary", "bce-dice"),
    ("binary", "structure"),
    ("per-class", "ce-dice"),
    ("mask-classification", "mask-classification"),
]
IMAGES = 2


def segmenter(method, options, head="binary", checkpointing=False):
    classes = ("background", "a") if head == "binary" else ("background", "a", "b")
    config = SegmenterConfig(
        "x", classes, method=method, method_options=options, head=head, num_masks=10, image_size=64
    )
    torch.manual_seed(0)
    model = Segmenter(random_sam(SMALL), config).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # adapters that start at zero would hide what comes before
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    model.encoder.set_recompute(checkpointing)
    return model


def step(model, place, loss, dtype=None):
    """Loss, gradients and the device's waits of a step."""
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(IMAGES, 3, 64, 64, generator=generator).to(place)
    target = torch.randint(0, len(model.config.classes), (IMAGES, 64, 64), generator=generator).to(place)
    torch.manual_seed(3)
    device.waits.clear()
    with torch.autocast(place, dtype, enabled=dtype is not None):
        output = model(image, range(IMAGES))
    value = make_objective(model, loss)(output, target, range(IMAGES))
    value.backward()
    waits = list(device.waits)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(gradient.device.type == place for gradient in gradients.values())
    gradients = {name: gradient.cpu() for name, gradient in gradients.items()}
    return value.item(), gradients, waits


def both(model, loss, dtype=None):
    hold_frozen_in(model, dtype)
    there = copy.deepcopy(model).to(device.NAME)
    return step(model, "cpu", loss, dtype), step(there, device.NAME, loss, dtype)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("method", "options"), METHODS, ids=str)
def test_gradients_are_those_of_the_cpu(method, options, checkpointing):
    model = segmenter(method, options, checkpointing=checkpointing)
    (loss, wanted, _), (found, gradients, waits) = both(model, "bce-dice")
    assert found == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == wanted.keys()
    largest = max(gradient.abs().max() for gradient in wanted.values())
    assert largest > 1e-3
    for name, gradient in wanted.items():
        assert (gradients[name] - gradient).abs().max() < 1e-5 * largest, name
    assert len(waits) == IMAGES  # for the check of its labels, one each


@pytest.mark.parametrize(("head", "loss"), HEADS)
def test_losses_are_those_of_the_cpu(head, loss):
    (value, wanted, _), (found, gradients, waits) = both(segmenter("lora", {}, head), loss)
    assert found == pytest.approx(value, rel=1e-5)
    largest = max(gradient.abs().max() for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert (gradients[name] - gradient).abs().max() < 1e-4 * largest, name
    # of the host are also which classes there are, and the assignment of masks to them
    assert len(waits) == IMAGES * (3 if head == "mask-classification" else 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("method", "options"), METHODS, ids=str)
def test_half_precision_as_a_gpu_casts_it(method, options, dtype):
    """CUDA's autocast keeps other operators in float32 than the CPU's: no types may meet that do not fit."""
    model = segmenter(method, options)
    exact, _, _ = step(copy.deepcopy(model).to(device.NAME), device.NAME, "bce-dice")
    hold_frozen_in(model, dtype)
    found, gradients, _ = step(model.to(device.NAME), device.NAME, "bce-dice", dtype)
    assert found == pytest.approx(exact, rel=0.05)
    assert found != exact
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32, name
        assert torch.isfinite(gradient).all(), name


def test_tensors_of_two_devices_do_not_meet():
    """What the tests above rest on."""
    here, there = torch.ones(2), torch.ones(2).to(device.NAME)
    with pytest.raises(RuntimeError, match=r"tensors of the CPU, \[\(2,\)\], meet those of musa"):
        here + there
    with pytest.raises(TypeError, match=r"Use Tensor\.cpu\(\)"):
        there.numpy()
    device.waits.clear()
    assert (there + there).sum().item() == 4
    assert device.waits == ["_local_scalar_dense.default"]
    with torch.autocast(device.NAME, torch.bfloat16):
        assert (there @ there).dtype == torch.bfloat16
        assert torch.softmax(there.bfloat16(), 0).dtype == torch.float32
