"""Fine-tuning methods for a ViT encoder, one file each; they know nn.Module only."""

from convlora.adapters.base import (
    HasAuxLoss,
    Mergeable,
    Method,
    Unmergeable,
    build_method,
    is_everywhere,
    is_method,
    methods,
    register,
)
from convlora.adapters.bitfit import BitFit
from convlora.adapters.bottleneck import Adapter
from convlora.adapters.conv_lora import ConvLora
from convlora.adapters.full import DecoderOnly, Full
from convlora.adapters.inject import (
    ParameterCount,
    adapter_state_dict,
    announce_samples,
    auxiliary_loss,
    check_mergeable,
    count_parameters,
    forget_auxiliary_loss,
    install,
    load_adapter_state_dict,
    merge,
    trainable_parameters,
)
from convlora.adapters.lora import Lora
from convlora.adapters.lst import Lst
from convlora.adapters.multi_scale import ConvLoraMultiScale
from convlora.adapters.sam_adapter import SamAdapter
from convlora.adapters.ssf import Ssf
from convlora.adapters.vpt import Vpt

__all__ = [
    "Adapter",
    "BitFit",
    "ConvLora",
    "ConvLoraMultiScale",
    "DecoderOnly",
    "Full",
    "HasAuxLoss",
    "Lora",
    "Lst",
    "Mergeable",
    "Method",
    "ParameterCount",
    "SamAdapter",
    "Ssf",
    "Unmergeable",
    "Vpt",
    "adapter_state_dict",
    "announce_samples",
    "auxiliary_loss",
    "build_method",
    "check_mergeable",
    "count_parameters",
    "forget_auxiliary_loss",
    "install",
    "is_everywhere",
    "is_method",
    "load_adapter_state_dict",
    "merge",
    "methods",
    "register",
    "trainable_parameters",
]
