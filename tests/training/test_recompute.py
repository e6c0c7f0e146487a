"""Activation checkpointing changes memory, not results, for every method."""

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from convlora.adapters import build_method, methods, trainable_parameters
from convlora.adapters.base import HasAuxLoss
from convlora.config import make_config
from convlora.errors import ConfigError
from convlora.model import Segmenter, SegmenterConfig
from convlora.training.fit import fit
from convlora.training.memory import simulate_step
from small import SMALL


def gradients(backbone, method, recompute, keys, options):
    model = Segmenter.from_backbone(str(backbone), ("no", "yes"), build_method(method, options)).train()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.encoder.set_recompute(recompute)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(0)
    image = torch.randn(2, 3, 64, 64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = model(image, keys).mask_logits.square().mean()
    auxiliary = model.auxiliary_loss()
    (loss if auxiliary is None else loss + auxiliary).backward()
    return {n: p.grad for n, p in trainable_parameters(model).items()}, sum(kept.values())


CASES = [*((m, {}) for m in methods()), ("conv-lora", {"routing": "switch", "scope": "image"})]


@pytest.mark.parametrize("keys", [None, (7, 8)], ids=["no keys", "keys"])
@pytest.mark.parametrize(("method", "options"), CASES, ids=str)
def test_gradients_are_the_same(small_backbone, method, options, keys):
    plain, much = gradients(small_backbone, method, False, keys, options)
    again, little = gradients(small_backbone, method, True, keys, options)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        if gradient is None:
            assert again[name] is None
        else:  # the same operations on the same numbers
            assert torch.equal(again[name], gradient), name
    if method != "lst":  # whose frozen blocks keep nothing anyway, and whose side is tiny here
        assert (little < much) == (method != "decoder-only")


def test_side_losses_do_not_hold_the_second_pass(small_backbone):
    """A graph that nobody runs backward keeps its inputs until the next forward pass."""
    method = build_method("conv-lora", {"routing": "balance"})
    model = Segmenter.from_backbone(str(small_backbone), ("no", "yes"), method).train()
    model.encoder.set_recompute(True)
    loss = model(torch.randn(2, 3, 64, 64), (7, 8)).mask_logits.square().mean()
    layers = [module for module in model.modules() if isinstance(module, HasAuxLoss)]
    first = [layer.aux_loss for layer in layers]
    assert first
    assert all(one.grad_fn is not None for one in first)
    (loss + model.auxiliary_loss()).backward()
    assert all(layer.aux_loss is one for layer, one in zip(layers, first, strict=True))
    model(torch.randn(2, 3, 64, 64), (7, 8))
    assert not any(layer.aux_loss is one for layer, one in zip(layers, first, strict=True))


@pytest.mark.parametrize("method", sorted(set(methods()) - {"decoder-only"}))
def test_the_dry_run_counts_it(method):
    config = SegmenterConfig("x", ("no", "yes"), method, image_size=64)
    plain, again = (simulate_step(SMALL, config, 4, None, c).activations for c in (False, True))
    assert again < plain


def test_a_run_ends_in_the_same_weights(binary_data, small_backbone, tmp_path):
    ends = []
    for name, checkpointing in (("plain", False), ("again", True)):
        AcceleratorState._reset_state()
        values = {"max_steps": 3, "eval_every": 3, "image_size": 64, "previews": 0, "precision": "fp32"}
        places = {"data": binary_data, "out": tmp_path / name, "backbone": str(small_backbone)}
        fit(make_config({**places, **values, "checkpointing": checkpointing}))
        ends.append(load_file(tmp_path / name / "last" / "adapter_model.safetensors"))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_unet_has_none(binary_data, tmp_path):
    values = {"data": binary_data, "out": tmp_path / "run", "backbone": "unet", "method": "full"}
    with pytest.raises(ConfigError, match="checkpointing is for SAM's encoder; the backbone 'unet' has none"):
        fit(make_config({**values, "checkpointing": True}))
