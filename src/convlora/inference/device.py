"""Where to compute and in which precision."""

import torch

from convlora.errors import ConfigError

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Dtype for autocast; None means fp32.

    `auto` takes bf16 where the device computes in it natively (CPUs with AVX512-BF16 or AMX, GPUs from
    Ampere on), fp16 on older NVIDIA GPUs, and fp32 elsewhere.

    Raises:
        ConfigError: the name is none of these.
    """
    if precision != "auto" and precision not in _DTYPES:
        raise ConfigError(f"precision is {precision!r}; it must be one of auto, {', '.join(_DTYPES)}.")
    if precision == "auto":
        if device.type == "cuda":
            precision = "bf16" if _from_ampere_on(device) else "fp16"
        elif device.type == "cpu":
            precision = "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"
        else:
            precision = "fp32"
    return _DTYPES[precision]


def training_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """`autocast_dtype` for training.

    Raises:
        ConfigError: the name is none of these, or fp16 on a CPU or on Apple's GPUs: its gradients need a
            scaler, which accelerate has for CUDA.
    """
    dtype = autocast_dtype(precision, device)
    if dtype is torch.float16 and device.type == "cpu":
        raise ConfigError(
            "precision is fp16, in which nothing is trained on a CPU: small gradients would vanish. "
            "Use precision auto, fp32 or bf16."
        )
    if dtype is torch.float16 and device.type == "mps":
        raise ConfigError(
            "precision is fp16, in which nothing is trained on Apple's GPUs: not every PyTorch can scale "
            "its gradients there. Use precision auto, fp32 or bf16."
        )
    return dtype


def slowness(dtype: torch.dtype | None, device: torch.device) -> str | None:
    """What to tell who asked for a precision that PyTorch has no fast arithmetic for here; None if it has.

    Args:
        dtype: see `autocast_dtype`.
        device: where to compute; CPUs and NVIDIA's GPUs are known.
    """
    if device.type == "cuda" and dtype is torch.bfloat16 and not _from_ampere_on(device):
        return (
            "precision is bf16, which NVIDIA's GPUs before Ampere, as this one, only imitate: it is slow, "
            "and attention, for which PyTorch has no fused bf16 there, takes more memory. Use precision auto "
            "or fp16."
        )
    if dtype is None or device.type != "cpu":
        return None
    name = next(name for name, known in _DTYPES.items() if known is dtype)
    if torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")():
        return None
    return (
        f"precision is {name}, which PyTorch has no fast arithmetic for in this processor: it may be "
        "many times slower than fp32. Use precision auto or fp32."
    )


def advised_half(dtype: torch.dtype | None, device: torch.device) -> str | None:
    """Precision that takes less memory in training than the one in use, where the device is fast in one.

    Args:
        dtype: that is in use, see `training_dtype`.
        device: where to train.
    """
    if dtype is not None:
        return None
    names = ("bf16", "fp16") if device.type == "cuda" else ("bf16",)
    return next((name for name in names if slowness(_DTYPES[name], device) is None), None)


def _from_ampere_on(device: torch.device) -> bool:
    return bool(torch.cuda.get_device_capability(device)[0] >= 8)


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """Device by name; by default a GPU if there is one, Apple's too, as in training.

    Raises:
        ConfigError: the name is none, or this machine has no such device.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    rule = "it must be cpu, cuda, cuda:0, cuda:1, ..., or mps"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device is {name!r}; {rule}.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = torch.cuda.device_count()
        found = f"PyTorch finds {there} CUDA GPUs here" if there else "PyTorch finds no CUDA GPU here"
        raise ConfigError(f"device is '{device}', but {found}. Use {'cuda:0' if there else 'cpu'}.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device is 'mps', but PyTorch finds no Apple GPU here. Use cpu.")
    if device.type not in {"cpu", "cuda", "mps"} and not isinstance(name, torch.device):
        raise ConfigError(f"device is {name!r}; {rule}.")
    return device
