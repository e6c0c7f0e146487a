"""A device that is not the CPU, for machines without a GPU: its tensors are computed on the CPU, but meet no
CPU tensors, and reading a value is noted as a wait.

What it shows: that all tensors of a step are on one device, that the branches for devices other than the CPU
compute what the CPU's do, which types autocast gives them there, and how often a step waits for the device.
What it cannot show: kernels, memory and streams of a GPU. Registering a device changes PyTorch for the whole
process, so these tests run in one of their own; see tests/test_other_device_*.py.
"""

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

NAME = "musa"  # of those that accelerate trains in fp16 on, one that no PyTorch of this machine computes on
_aten = torch.ops.aten
_TRANSFERS = {_aten._to_copy.default, _aten.copy_.default}
_READS = {_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.equal.default}

#: Operators that made the host wait for the device.
waits: list[str] = []


class Device(Tensor):
    """A tensor of the device, around one of the CPU."""

    @staticmethod
    def __new__(cls, inner):
        """See `Tensor`; without float64, as on Apple's GPUs, but for the gradient scaler's one number."""
        if inner.dtype == torch.float64 and inner.numel() > 1:
            raise TypeError(f"{NAME} has no float64")
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=f"{NAME}:0",
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        """Values too."""
        return f"Device({self.inner!r})"

    def tolist(self):
        """A wait, as on a GPU."""
        waits.append("tolist")
        return self.inner.tolist()

    def numpy(self, **_):
        """Refused, as on a GPU."""
        raise TypeError(f"can't convert {NAME}:0 device type tensor to numpy. Use Tensor.cpu()")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Compute on the CPU what is all on this device, or moves from one to the other."""
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    leaves = pytree.tree_leaves((args, kwargs))
    ours = [leaf for leaf in leaves if isinstance(leaf, Device)]
    others = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, Device)]
    large = [tuple(tensor.shape) for tensor in others if tensor.ndim > 0]  # numbers may come along
    if ours and large and func not in _TRANSFERS and "index" not in func.__name__:
        raise RuntimeError(f"{func}: tensors of the CPU, {large}, meet those of {NAME}")
    target = kwargs.get("device")
    leaves_here = bool(ours) and target is not None and torch.device(target).type != NAME
    if ours and (func in _READS or leaves_here or (func is _aten.copy_.default and not _is_ours(args[0]))):
        waits.append(func.__name__)
    options = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    if target is not None and not leaves_here:
        options["device"] = torch.device("cpu")
    inner_args, inner_options = pytree.tree_map(_inner, (args, options))
    found = func(*inner_args, **inner_options)
    if leaves_here:
        return found
    if func is _aten.copy_.default and not _is_ours(args[0]):
        return args[0]
    given = {id(tensor.inner): tensor for tensor in ours}  # what works in place gives back what it was given
    return pytree.tree_map(lambda leaf: _ours(leaf, given), found)


def _is_ours(value):
    return isinstance(value, Device)


def _inner(leaf):
    return leaf.inner if isinstance(leaf, Device) else leaf


def _ours(leaf, given):
    if not isinstance(leaf, Tensor):
        return leaf
    return given[id(leaf)] if id(leaf) in given else Device(leaf)


class _Module(backend_registration._DummyBackendModule):
    def get_amp_supported_dtype(self):
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device=None):
        return torch.get_rng_state()

    def set_rng_state(self, state, device=None):
        torch.set_rng_state(state)


class _Generator(torch.Generator):
    """Of the CPU: the device has none of its own."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")


def _empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return Device(torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format))


def _empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
    return Device(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source, target, non_blocking=False):
    _inner(target).copy_(_inner(source))
    return target


#: What CUDA's autocast computes in the lower type and in float32 (PyTorch, "Autocast Op Reference"), as far
#: as it comes up here.
LOWER = (
    "conv2d", "conv_transpose2d.input", "addmm", "matmul", "einsum", "mm", "bmm", "baddbmm", "linear",
    "scaled_dot_product_attention",
)  # fmt: skip
FLOAT32 = (
    "exp", "log", "log1p", "reciprocal", "rsqrt", "pow.Tensor_Scalar", "softplus", "layer_norm", "group_norm",
    "nll_loss", "l1_loss", "mse_loss", "binary_cross_entropy_with_logits", "logsumexp", "upsample_bilinear2d",
    "upsample_bicubic2d", "upsample_nearest2d", "softmax.int", "log_softmax.int", "cumsum", "sum",
    "sum.dim_IntList",
)  # fmt: skip


def _autocast(name, lower):
    packet, _, overload = name.partition(".")
    op = getattr(getattr(_aten, packet), overload or "default")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def cast(leaf):
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.dtype == torch.float64:
            return leaf
        return leaf.to(torch.get_autocast_dtype(NAME) if lower else torch.float32)

    def kernel(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*pytree.tree_map(cast, args), **pytree.tree_map(cast, kwargs))

    return kernel


def register():
    """Make the device known to PyTorch, and to accelerate as the one to train on."""
    from accelerate import accelerator
    from accelerate.state import PartialState

    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    library = torch.library.Library("aten", "IMPL")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    for names, lower in ((LOWER, True), (FLOAT32, False)):
        for name in names:
            library.impl(name, _autocast(name, lower), "AutocastPrivateUse1")
    torch.__future__.set_swap_module_params_on_conversion(True)  # parameters become tensors of another class
    torch._C._set_only_lift_cpu_tensors(True)
    torch.Generator = _Generator
    PartialState.default_device = property(lambda self: torch.device(NAME))
    accelerator.get_grad_scaler = lambda *_, **options: torch.amp.GradScaler(NAME, **options)
    return library, others  # what they hold is undone when they are collected
