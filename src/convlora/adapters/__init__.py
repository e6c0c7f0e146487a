"""Fine-tuning methods for a ViT encoder, one file each; they know nn.Module only."""

from convlora.adapters.base import HasAuxLoss, Mergeable, Method, Unmergeable, build_method, methods, register
from convlora.adapters.conv_lora import ConvLora
from convlora.adapters.full import DecoderOnly, Full
from convlora.adapters.inject import (
    ParameterCount,
    adapter_state_dict,
    announce_samples,
    auxiliary_loss,
    count_parameters,
    install,
    load_adapter_state_dict,
    merge,
    trainable_parameters,
)
from convlora.adapters.lora import Lora

__all__ = [
    "ConvLora",
    "DecoderOnly",
    "Full",
    "HasAuxLoss",
    "Lora",
    "Mergeable",
    "Method",
    "ParameterCount",
    "Unmergeable",
    "adapter_state_dict",
    "announce_samples",
    "auxiliary_loss",
    "build_method",
    "count_parameters",
    "install",
    "load_adapter_state_dict",
    "merge",
    "methods",
    "register",
    "trainable_parameters",
]
