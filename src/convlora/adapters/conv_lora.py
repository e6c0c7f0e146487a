"""Conv-LoRA (Zhong et al., ICLR 2024): LoRA with a mixture of multi-scale convolution experts."""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from convlora.adapters.base import (
    AuxLossMixin,
    Block,
    Method,
    at_least_float32,
    check_option,
    check_targets,
    is_int,
    is_number,
    register,
)
from convlora.adapters.experts import MultiScaleExperts
from convlora.adapters.gating import NoisyTopKGate, Routing, SoftGate
from convlora.adapters.inject import blocks, replace_module, target_linears
from convlora.adapters.lora import check_low_rank, check_rank_fits, new_low_rank_pair, project, updated_linear
from convlora.errors import TargetError
from convlora.recompute import computed_again

ROUTINGS = ("balance", "switch", "soft", "soft-pixel")
_SOFT, _SCOPES, STARTS = ("soft", "soft-pixel"), ("window", "image"), ("random", "zero")
_GATE_REASON = "with top_k=1 the gate's weight is exactly 1, so only the balance loss trains the router"


@register
@dataclass(frozen=True)
class ConvLora(Method):
    """LoRA whose low-rank features also pass one of several convolutions, each at its own scale.

    The update of a layer is (alpha / rank) B (z + E_g(z)) with z = A x; a gate picks the expert g per sample,
    which in a windowed block is a window. Equations and differences from the paper: `ConvLoRALinear`.
    """

    name: ClassVar[str] = "conv-lora"

    rank: int = dataclasses.field(default=3, metadata={"help": "Rank of the update."})
    alpha: float = dataclasses.field(default=32.0, metadata={"help": "The update is scaled by alpha / rank."})
    scales: tuple[int, ...] = dataclasses.field(
        default=(1, 2, 3, 4, 5, 6, 7, 8), metadata={"help": "Upsampling factor of each expert."}
    )
    top_k: int = dataclasses.field(
        default=1, metadata={"help": "Experts per sample; from 2 on the task loss trains the router too."}
    )
    targets: tuple[str, ...] = dataclasses.field(
        default=("attn.qkv",),
        metadata={"help": "Layers of every block: qkv, proj, mlp, or exact names."},
    )
    balance_weight: float = dataclasses.field(
        default=0.01, metadata={"help": "Weight of the loss that spreads the samples over the experts."}
    )
    routing: str = dataclasses.field(
        default="balance",
        metadata={
            "help": "balance (official); switch: the task trains the router; soft, soft-pixel: all scales."
        },
    )
    scope: str = dataclasses.field(
        default="window",
        metadata={"help": "window (official): each attention window on its own; image: the whole map."},
    )

    temperature: float = dataclasses.field(
        default=1.0, metadata={"help": "The gate's logits are divided by it; small ones learn faster."}
    )
    gain: float = dataclasses.field(default=1.0, metadata={"help": "Factor of the experts' output."})
    start: str = dataclasses.field(
        default="random", metadata={"help": "The experts' kernels at first: random (official) or zero."}
    )

    def __post_init__(self) -> None:
        check_low_rank(self, self.rank, self.alpha)
        check_scales(self, self.scales)
        top_k = is_int(self.top_k, 1) and self.top_k <= len(self.scales)
        check_option(self, "top_k", top_k, f"an integer from 1 to the number of scales, {len(self.scales)}")
        check_targets(self, self.targets)
        check_option(self, "balance_weight", is_number(self.balance_weight), "a number of at least 0")
        balances = self.routing not in _SOFT or self.balance_weight == ConvLora.balance_weight
        unused = f"left out with routing={self.routing}, which has no balance loss"
        check_option(self, "balance_weight", balances, unused)
        check_option(self, "routing", self.routing in ROUTINGS, f"one of {', '.join(ROUTINGS)}")
        alone = self.routing not in _SOFT or self.top_k == 1
        check_option(self, "top_k", alone, f"left out with routing={self.routing}, where all scales run")
        check_option(self, "scope", self.scope in _SCOPES, f"one of {', '.join(_SCOPES)}")
        for name in ("temperature", "gain"):
            value = getattr(self, name)
            check_option(self, name, is_number(value) and value != 0, "a number above 0")
        check_option(self, "start", self.start in STARTS, f"one of {', '.join(STARTS)}")

    def install(self, encoder: nn.Module) -> list[nn.Parameter]:
        """Wrap each target; see `Method.install`."""
        parameters: list[nn.Parameter] = []
        for name, base in target_linears(encoder, self.targets):
            check_rank_fits(self.rank, name, base)
            layer = ConvLoRALinear(
                base,
                self.rank,
                self.alpha,
                self.scales,
                self.top_k,
                self.balance_weight,
                self.routing,
                self._windows(encoder, name),
                self.temperature,
                self.gain,
            )
            if self.start == "zero":
                nn.init.zeros_(layer.experts.weight)
            replace_module(encoder, name, layer)
            parameters += [layer.lora_A, layer.lora_B, *layer.gate.parameters(), *layer.experts.parameters()]
        return parameters

    def _windows(self, encoder: nn.Module, name: str) -> Block | None:
        """The block whose windows are to be joined for the layer; None where it sees what it is to see."""
        _, index, place = name.split(".", 2)
        block = blocks(encoder)[int(index)]
        windowed = place.startswith("attn.") and block.window_size > 0
        return block if self.scope == "image" and windowed else None

    def parameters_without_task_gradient(self) -> dict[str, str]:
        """The router, where it only balances; see `Method`."""
        trained = self.routing != "balance" or self.top_k > 1
        return {} if trained else {"gate.w_gate": _GATE_REASON, "gate.w_noise": _GATE_REASON}


class ConvLoRALinear(AuxLossMixin, nn.Module):
    """A frozen linear layer with a Conv-LoRA update.

        z = A x,    h = W x + b + (alpha / r) B (z + gain sum_k g_k E_(i_k)(z))

    where A (r, in) and B (out, r) are the low-rank pair (B starts at zero, so the layer starts as its
    base), E_i is expert i (`experts`: bicubic up by scales[i], 3x3 convolution, GELU, bicubic down), and
    the g_k and i_k come from a noisy top-k gate on the mean of z over the map (`gating`). In training
    mode, forward writes `aux_loss` = balance_weight (CV^2(importance) + CV^2(load)); in evaluation it is
    None. Routings:

    - balance: the official one. With K = 1, g = 1, and the balance loss alone trains the gate;
    - switch: g is the expert's share of the softmax over all logits (`NoisyTopKGate`, full), so the task
      trains the gate, and the experts start with a weight of about 1 / M;
    - soft: sum over all experts with the weights softmax(mean(z) W_gate); no noise, no balance loss;
    - soft-pixel: the same with weights of every position, softmax(z W_gate).

    In a windowed block each window is a map of its own, as in the official code; with `windows`, the windows
    are joined first: one decision and one convolution over the image's whole map, without borders at the
    windows. Padding then has no update but that of z, which is zero there.

    Ours, beyond the paper: the gate's logits are divided by `temperature`, the experts' sum is multiplied by
    `gain`. AdamW moves every weight by about the learning rate a step, so a small temperature and a large
    gain let gate and kernels learn faster than the low-rank pair. With kernels that start at zero the layer
    starts as LoRA's does, and all scales start equal.

    Source: Zhong et al., "Convolution Meets LoRA", ICLR 2024 (arXiv 2401.17868), and its official code
    (AutoGluon). As in the code, and beyond the formula of the paper, there is the identity path z + E(z),
    a GELU follows the convolution, and in windowed blocks each window is routed, and padded, on its own.

    Differs from the official code in that

    - it returns one tensor; the balance loss is an attribute;
    - experts run without the upsampled map, exactly (`experts`), and routing never waits for the device;
    - maps need not be square, and a flattened map is refused: its sides are not guessed;
    - for top_k > 1 the output is the weighted sum, not log(sum(exp)), and the task loss trains the router.
      With top_k = 1 it cannot, there or here: the softmax over one logit is constant;
    - gate and experts compute in float32 under autocast (the official gate fails in half precision);
    - equal gate logits, as before any training, go to the first expert in evaluation;
    - there is no balance loss in evaluation.

    Args:
        base: the layer to adapt; its own parameters are left as they are.
        rank: r.
        alpha: numerator of the scale.
        scales: upsampling factor of each expert.
        top_k: experts per sample, 1 to len(scales).
        balance_weight: weight of the balance loss.
        routing: see above.
        windows: block that the layer is in, if its windows are to be joined.
        temperature: of the gate.
        gain: factor of the experts' output.
    """

    unmergeable_because: ClassVar[str] = (
        "its update depends on the input (routing and GELU), so no fixed weight equals it"
    )

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        alpha: float,
        scales: tuple[int, ...],
        top_k: int = 1,
        balance_weight: float = 0.01,
        routing: str = "balance",
        windows: Block | None = None,
        temperature: float = 1.0,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.base, self.gain = base, gain
        self.routing = routing
        self.windows = (windows,)  # in a tuple: the block is no child of its own layer
        self.scaling = alpha / rank
        self.balance_weight = balance_weight
        self.lora_A, self.lora_B = new_low_rank_pair(base, rank)
        device, dtype = self.lora_A.device, self.lora_A.dtype
        self.gate: nn.Module = (
            SoftGate(rank, len(scales), device, dtype, temperature)
            if routing in _SOFT
            else NoisyTopKGate(rank, len(scales), top_k, device, dtype, routing == "switch", temperature)
        )
        self.experts = MultiScaleExperts(rank, scales, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, in) to (B, H, W, out), in the dtype of the base's output.

        Raises:
            TargetError: x is not a four-dimensional map.
        """
        check_map(x, "conv-lora")
        z = project(x, self.lora_A)
        (block,) = self.windows
        update = self._mixture(z) if block is None else block.cut(self._mixture(block.joined(z)))
        hidden = z + update if self.gain == 1 else torch.add(z, update, alpha=self.gain)
        return updated_linear(self.base, x, hidden, self.lora_B, self.scaling)

    def _mixture(self, z: Tensor) -> Tensor:
        """Sum of the experts' outputs on (B, H, W, rank), each with its weight; writes the balance loss."""
        mean = z.mean((1, 2), dtype=at_least_float32(z.dtype))
        if self.routing in _SOFT:
            return self.experts.mixed(z, self.gate(z if self.routing == "soft-pixel" else mean))
        routing: Routing = self.gate(mean)
        if not computed_again():  # else the loss would hold a second graph, which nobody runs backward
            self.aux_loss = None if routing.balance is None else self.balance_weight * routing.balance
        fixed = self.routing == "balance" and routing.indices.shape[1] == 1  # a softmax over one logit is 1
        return self.experts(z, None if fixed else routing.gates, routing.indices)


def check_scales(method: Method, scales: object) -> None:
    """Raise a ConfigError unless `scales` is a non-empty tuple of integers of at least 1."""
    valid = isinstance(scales, tuple) and bool(scales) and all(is_int(s, 1) for s in scales)
    check_option(method, "scales", valid, "a list of integers of at least 1")


def check_map(x: Tensor, method: str) -> None:
    """Raise a TargetError unless x is (B, H, W, C)."""
    if x.ndim != 4:
        raise TargetError(
            f"{method} adapts layers that see a map (batch, height, width, channels), got the shape "
            f"{tuple(x.shape)}. Choose targets that do, such as attn.qkv."
        )
