"""How much memory a training step will take, found by running the step on tensors without data.

The real model goes through a real forward and backward pass in which every operation yields a tensor of the
right shape and dtype but no storage (PyTorch's FakeTensorMode), while the bytes that would be alive are
counted. So every method, size and precision is covered without a formula of its own, in seconds and without
weights. What the count cannot see (interpreter and libraries, workspaces of the kernels, fragmentation) is
added by the constants below, fitted to measured peaks: `benchmarks/memory_model.py`, docs/memory.md.
"""

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from convlora.backbone.presets import EncoderSpec, SamSpec
from convlora.backbone.sam import Sam
from convlora.frozen import hold_frozen_in
from convlora.model import Segmenter, SegmenterConfig

MIB = 2**20
#: Added on CPUs to what the process holds before the model is built: thread pools, workspaces, first uses.
CPU_OVERHEAD = 230 * MIB
#: Added on other devices: the context of the driver and its libraries. Not measured.
DEVICE_OVERHEAD = 700 * MIB
#: Peak of the activations over the bytes that are alive, in fp32 and in half precision: kernels' buffers and
#: fragmentation.
ACTIVATION_FACTORS = (1.3, 1.5)


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step.

    Attributes:
        parameters: all parameters, trained or not, as training holds them: frozen ones in half precision
            where it computes so.
        state: gradients and AdamW's two moments of the trained ones.
        activations: most that is alive besides, in forward and backward of one micro-batch.
        half: whether it computes in half precision.
        unfused: what the attention of the largest map takes besides, where no kernel fuses it.
    """

    parameters: int
    state: int
    activations: int
    half: bool
    unfused: int = 0


def simulate_step(
    spec: SamSpec,
    config: SegmenterConfig,
    micro_batch: int,
    dtype: torch.dtype | None,
    checkpointing: bool = False,
) -> StepMemory:
    """Count the bytes of a training step.

    Args:
        spec: shape of the backbone.
        config: method, classes, head and image size.
        micro_batch: images at once.
        dtype: of autocast; None is fp32.
        checkpointing: whether the blocks are computed again for the backward pass.
    """
    with torch.device("meta"):
        model = Segmenter(Sam(spec), config).train()
    model.encoder.set_recompute(checkpointing)
    hold_frozen_in(model, dtype)
    with FakeTensorMode(), _LiveBytes() as live:
        _give_fake_parameters(model)
        parameters = live.now
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            output = model(torch.empty(micro_batch, 3, config.image_size, config.image_size))
        loss = _like_a_loss(output.mask_logits, config)
        if output.class_logits is not None:
            loss = loss + output.class_logits.float().logsumexp(-1).sum()
        auxiliary = model.auxiliary_loss()
        (loss if auxiliary is None else loss + auxiliary).backward()
        peak = live.peak
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return StepMemory(
        parameters,
        3 * trained,
        max(0, peak - parameters - trained),
        dtype is not None,
        _unfused(spec.encoder, config.image_size, micro_batch, dtype),
    )


def estimate_peak(step: StepMemory, device: str, held: int, cached: int = 0, loaded: int = 0) -> int:
    """Peak in bytes: of the process on a CPU (resident set size), of the allocator on another device.

    Args:
        step: see `simulate_step`.
        device: type of the device.
        held: resident bytes of the process before the model is built.
        cached: decoded training images that are kept.
        loaded: the weights as they are read, before those that stay frozen are rounded; always on the CPU.
    """
    model = step.parameters + step.state + int(ACTIVATION_FACTORS[step.half] * step.activations)
    if device != "cpu":
        return model + DEVICE_OVERHEAD + (step.unfused if device == "mps" else 0)
    return held + max(model + cached + CPU_OVERHEAD, loaded)


def _unfused(spec: EncoderSpec, image_size: int, micro_batch: int, dtype: torch.dtype | None) -> int:
    """Weights, their gradient and the logits of one block (batch, heads, N, N), which MPS holds in turn."""
    side = image_size // spec.patch_size if spec.global_attn_indexes else spec.window_size
    positions = side**2
    return 3 * micro_batch * spec.num_heads * positions**2 * (4 if dtype is None else dtype.itemsize)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that are alive; `now` and `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401  # an operator
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) not in self.known:
            self.known.add(id(storage))
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, id(storage), storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def _give_fake_parameters(model: nn.Module) -> None:
    """Replace meta parameters and buffers by ones on the (fake) CPU, whose kernels differ from meta's."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(fake, parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


def _like_a_loss(masks: Tensor, config: SegmenterConfig) -> Tensor:
    """Maps like those that a loss keeps; the losses themselves look at values, which there are none of."""
    masks = masks.float()
    if config.head == "mask-classification":
        return masks.square().sum()  # at sampled points
    size = (config.image_size, config.image_size)
    masks = F.interpolate(masks, size, mode="bilinear", align_corners=False)
    truth, weight = torch.empty_like(masks), torch.empty_like(masks)
    if masks.shape[1] > 1:
        log_probability = masks.log_softmax(1)
        return (log_probability * truth).sum() + (log_probability.exp() * weight).sum()
    probability = masks.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(masks, truth, reduction="none")
    return (weight * entropy).sum() + (weight * probability * truth).sum() / (weight * probability).sum()
