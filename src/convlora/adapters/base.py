"""What a fine-tuning method is, and the table of all methods.

A method is a frozen dataclass: its fields are its configuration, its command-line options and its
documentation. Its one verb, `install`, changes an encoder in place and returns the parameters to train.
Everything else (freezing, counting, saving, merging, collecting side losses) is written once, in
`convlora.adapters.inject`.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from convlora.adapters.plugins import is_plugin, load_plugins
from convlora.errors import ConfigError
from convlora.settings import near_hint


class Block(Protocol):
    """What methods may rely on in a transformer block.

    Attributes:
        norm1: nn.LayerNorm before the attention.
        attn: has `qkv`, one nn.Linear from C to 3 C for query, key and value, and `proj`, C to C.
        norm2: nn.LayerNorm before the MLP.
        mlp: has `lin1` and `lin2`.
        window_size: side of the attention window; 0 in a global block.

    The linear layers are called on channel-last maps (B', H', W', C). Where attention is windowed, those of
    `attn` see one window per batch entry, zero padded at the right and bottom of the map.
    """

    norm1: nn.LayerNorm
    attn: nn.Module
    norm2: nn.LayerNorm
    mlp: nn.Module
    window_size: int

    def cut(self, x: Tensor) -> Tensor:
        """Cut a map (B, H, W, C) into windows (B', w, w, C); in a global block, the map itself."""
        ...

    def joined(self, windows: Tensor) -> Tensor:
        """Put windows back into the map whose attention is being computed: the inverse of `cut`."""
        ...

    def with_tokens(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Run the block on (B, H, W, C) with tokens (B, n, C) beside the map; both come back."""
        ...

    def narrowed(self, dim: int, num_heads: int) -> nn.Module:
        """Make a new block of another width, (B, H, W, dim) to the same, with the same windows."""
        ...


class Method(Protocol):
    """One way to fine-tune an encoder: a frozen dataclass that subclasses this and is registered.

    Attributes:
        name: unique, lower case, words joined by hyphens; what `--method` takes.
        trains_encoder: False for a method that leaves the whole encoder frozen.
    """

    name: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    trains_encoder: ClassVar[bool] = True

    def install(self, encoder: nn.Module) -> list[nn.Parameter]:
        """Change `encoder` in place.

        An encoder has `patch_embed` (a convolution), `blocks` (an nn.ModuleList of `Block`), `neck`, and
        `side_path`: None, or a module that runs the blocks in its own way (`inject.set_side_path`).

        Returns:
            Exactly the parameters to train, each a parameter of the changed encoder.

        Raises:
            TargetError: there is nothing to adapt.
        """
        ...

    def parameters_without_task_gradient(self) -> dict[str, str]:
        """Ends of the names of parameters that the task loss never reaches, each with the reason."""
        return {}


@runtime_checkable
class Mergeable(Protocol):
    """An adapted layer whose update can be folded into a plain layer."""

    def merged(self) -> nn.Module:
        """The plain layer that computes the same function."""
        ...


@runtime_checkable
class Unmergeable(Protocol):
    """An adapted layer that no plain layer equals."""

    unmergeable_because: ClassVar[str]


@runtime_checkable
class HasAuxLoss(Protocol):
    """A layer with a side loss: a scalar written by `forward` in training mode, None otherwise."""

    aux_loss: Tensor | None


class AuxLossMixin:
    """Holds `aux_loss` and leaves it out of copies and pickles, which a tensor with a graph would break."""

    aux_loss: Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "aux_loss": None}


class Samples(NamedTuple):
    """What a layer may know of the images in a training batch.

    Attributes:
        images: number of images; the rows that a layer sees are image-major.
        keys: of each image, a number that is its own in the whole run; None where there are none.
        layer: place of the layer among those that ask.
    """

    images: int
    keys: tuple[int, ...] | None
    layer: int


@runtime_checkable
class AsksForSamples(Protocol):
    """A layer that treats the images of a training batch one by one; told by `inject.announce_samples`."""

    samples: Samples | None


def keyed_normal(samples: Samples, rows: int, columns: int) -> Tensor:
    """Normal numbers (rows, columns) float32 on the CPU that depend on each image's key and the layer only.

    So they are the same for any number of processes, micro-batches and workers, after a resume, and when
    activations are computed again.
    """
    assert samples.keys is not None
    drawn = []
    for key in samples.keys:
        seed = int(np.random.SeedSequence((key, samples.layer)).generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator().manual_seed(seed)
        drawn.append(torch.randn(rows // samples.images, columns, generator=generator))
    return torch.cat(drawn)


def autocast_active(device_type: str) -> bool:
    """Whether autocast is on for the device type; False for those that have none, such as meta."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def autocast_off(device_type: str) -> AbstractContextManager[object]:
    """Context that computes in the dtype of the operands; enters nothing where autocast is off already."""
    if autocast_active(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def apply_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """layer(x), in autocast's dtype or else the layer's own."""
    return layer(x if autocast_active(x.device.type) else x.to(layer.weight.dtype))


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Float32 for the half precisions, else `dtype`."""
    return torch.promote_types(dtype, torch.float32)


# --- the table of methods ---

_METHODS: dict[str, type[Method]] = {}
_M = TypeVar("_M", bound=type[Method])


def register(method: _M) -> _M:
    """Class decorator that adds a method to the table; in a notebook the class may be defined again.

    Raises:
        ValueError: the name is not lower-case words joined by hyphens, or another class has it; the class is
            not a frozen dataclass; a field has no help text.
    """
    name = getattr(method, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise ValueError(f"{method.__name__}.name must be lower-case words joined by hyphens, got {name!r}.")
    taken = _METHODS.get(name, method)
    if (taken.__module__, taken.__qualname__) != (method.__module__, method.__qualname__):
        raise ValueError(f"The name {name!r} of {method.__name__} is taken by {taken.__name__}.")
    parameters = getattr(method, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise ValueError(f"{method.__name__} must be a frozen dataclass.")
    without_help = [f.name for f in _fields(method) if not f.metadata.get("help")]
    if without_help:
        raise ValueError(f"{method.__name__} needs metadata={{'help': ...}} on: {', '.join(without_help)}.")
    _METHODS[name] = method
    return method


def methods() -> dict[str, type[Method]]:
    """All methods by name, those of installed packages included.

    Raises:
        ConfigError: a package declares a method that cannot be loaded; see `load_plugins`.
    """
    load_plugins(_METHODS)
    return dict(_METHODS)


def is_method(name: str) -> bool:
    """Whether there is such a method; packages are looked at only where none of ours is called so.

    Raises:
        ConfigError: see `methods`.
    """
    return name in _METHODS or name in methods()


def is_everywhere(name: str) -> bool:
    """Whether other processes know a method too: ours and those of packages, not what a script registers."""
    return is_plugin(name) or _METHODS[name].__module__.startswith(f"{__package__}.")


def build_method(name: str, options: Mapping[str, Any] | None = None) -> Method:
    """Make a method from its name and options as read from YAML or the command line; lists become tuples.

    Raises:
        ConfigError: the name or an option is unknown (with the nearest known one), or a value is not valid;
            all problems of the options are listed, a line each.
    """
    if not isinstance(name, str) or not is_method(name):
        raise ConfigError(_unknown("method", name, _METHODS))
    method = _METHODS[name]
    known = [f.name for f in _fields(method)]
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in (options or {}).items()}
    problems = [_unknown(f"option of {name}", option, known) for option in given if option not in known]
    values = {k: v for k, v in given.items() if k in known}
    while True:  # a method stops at its first bad value: leave that one out to find the next
        try:
            built = method(**values)
            break
        except OptionError as error:
            problems.append(str(error))
            if error.option not in values:
                break
            del values[error.option]
    if problems:
        raise ConfigError("\n".join(problems))
    return built


def _fields(method: type[Method]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(method)


def _unknown(kind: str, got: object, known: Iterable[str]) -> str:
    known = sorted(known)
    return f"Unknown {kind}: {got!r}.{near_hint(got, known)} Available: {', '.join(known) or 'none'}."


# --- checks of a method's fields, called from __post_init__ ---


class OptionError(ConfigError):
    """A value of a method's field is not valid.

    Args:
        message: all of it.
        option: the field.
    """

    def __init__(self, message: str, option: str = "") -> None:
        super().__init__(message)
        self.option = option


def check_option(method: Method, field: str, valid: bool, rule: str) -> None:
    """Raise an OptionError that names the field, its value and the rule unless `valid`."""
    if not valid:
        value = getattr(method, field)
        shown = list(value) if isinstance(value, tuple) else value  # as it was written in YAML
        raise OptionError(f"{method.name}: {field} must be {rule}, got {shown!r}.", field)


def is_int(value: object, minimum: int) -> bool:
    """Whether `value` is an integer (True and False are not) of at least `minimum`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= minimum


def is_number(value: object, minimum: float = 0.0) -> bool:
    """Whether `value` is a finite int or float (True and False are not) of at least `minimum`."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and value >= minimum


#: Short names of targets.
_SHORT = {"qkv": ("attn.qkv",), "proj": ("attn.proj",), "mlp": ("mlp.lin1", "mlp.lin2")}


def full_targets(targets: Iterable[str]) -> list[str]:
    """Exact names of layers; 'qkv', 'proj' and 'mlp' (both of its layers) may be written short."""
    return [name for target in targets for name in _SHORT.get(target, (target,))]


def check_targets(method: Method, targets: object) -> None:
    """Raise a ConfigError unless `targets` is a non-empty tuple of different names, short ones included."""
    valid = isinstance(targets, tuple) and all(isinstance(t, str) and t for t in targets)
    full = full_targets(cast(tuple[str, ...], targets)) if valid else []
    rule = "a list of different layer names such as ['attn.qkv'], or of qkv, proj and mlp"
    check_option(method, "targets", 0 < len(full) == len(set(full)), rule)
