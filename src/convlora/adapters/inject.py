"""Put a method into an encoder: freeze, count, save, load, merge. Knows no method by name."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from convlora.adapters.base import (
    AsksForSamples,
    Block,
    HasAuxLoss,
    Mergeable,
    Method,
    Samples,
    Unmergeable,
    full_targets,
)
from convlora.errors import ConfigError, TargetError, WeightsError


class ParameterCount(NamedTuple):
    """Numbers of scalar parameters."""

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Trainable part of the total, 0 to 1."""
        return self.trainable / self.total if self.total else 0.0


def install(encoder: nn.Module, method: Method) -> list[nn.Parameter]:
    """Freeze `encoder`, install `method` in place and let exactly the parameters that it returns train.

    Returns:
        The parameters to train; empty only where `method.trains_encoder` is False.

    Raises:
        TargetError: the method found nothing to adapt, or a target is not there or is adapted already.
    """
    encoder.requires_grad_(False)
    parameters = method.install(encoder)
    if method.trains_encoder and not parameters:
        raise TargetError(f"{method.name} found nothing to train in {type(encoder).__name__}.")
    owned = {id(p) for p in encoder.parameters()}
    foreign = sum(id(p) not in owned for p in parameters)
    if foreign:
        raise TargetError(f"{method.name} returned {foreign} parameters that are not part of the encoder.")
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def blocks(encoder: nn.Module) -> list[Block]:
    """The transformer blocks of `encoder`.

    Raises:
        TargetError: there is no non-empty nn.ModuleList `blocks`.
    """
    found = getattr(encoder, "blocks", None)
    if not isinstance(found, nn.ModuleList) or not len(found):
        raise TargetError(f"{type(encoder).__name__} has no transformer blocks (an nn.ModuleList 'blocks').")
    return [cast(Block, block) for block in found]


def target_linears(encoder: nn.Module, targets: Iterable[str]) -> list[tuple[str, nn.Linear]]:
    """`target_layers` for plain linear layers."""
    return [(name, cast(nn.Linear, layer)) for name, layer in target_layers(encoder, targets)]


def target_layers(
    encoder: nn.Module, targets: Iterable[str], also: tuple[type[nn.Module], ...] = ()
) -> list[tuple[str, nn.Module]]:
    """Full name and layer of every target, block by block.

    Args:
        encoder: has `blocks`.
        targets: exact names within a block, such as "attn.qkv", or short ones (`full_targets`); every block
            must have each.
        also: kinds of layers that are allowed beside nn.Linear.

    Raises:
        TargetError: a target is not such a layer of every block; lists the names that are.
    """
    found, targets = [], full_targets(targets)
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, *also)
    for i, block in enumerate(blocks(encoder)):
        modules = dict(cast(nn.Module, block).named_modules())
        for target in targets:
            layer = modules.get(target)
            if not isinstance(layer, kinds):
                raise TargetError(_bad_target(i, target, modules, kinds))
            found.append((f"blocks.{i}.{target}", layer))
    return found


def _bad_target(
    block: int, target: str, modules: Mapping[str, nn.Module], kinds: tuple[type[nn.Module], ...]
) -> str:
    available = ", ".join(name for name, m in modules.items() if isinstance(m, kinds)) or "none"
    plain = " or ".join("linear" if kind is nn.Linear else kind.__name__ for kind in kinds)
    what = (
        f"is a {type(modules[target]).__name__}, not a plain {plain} layer"
        if target in modules
        else "is not there"
    )
    hint = " Is a method installed already?" if target in modules else ""
    listed = "Linear layers" if len(kinds) == 1 else "Layers that can be adapted"
    return f"Target {target!r} {what} in block {block}.{hint} {listed} there: {available}."


def set_side_path(encoder: nn.Module, path: nn.Module) -> list[nn.Parameter]:
    """Let `path` run the blocks (see `Method.install` and the encoder's `side_path`); its parameters train.

    Raises:
        TargetError: the encoder has no place for a side path, or one is there already.
    """
    if not hasattr(encoder, "side_path"):
        raise TargetError(
            f"{type(encoder).__name__} has no 'side_path'; this method needs an encoder that has."
        )
    if encoder.side_path is not None:
        raise TargetError(f"The encoder has a {type(encoder.side_path).__name__} already.")
    encoder.side_path = path
    return list(path.parameters())


def patch_convolution(encoder: nn.Module) -> tuple[str, nn.Conv2d]:
    """Full name and layer of the convolution that embeds the patches.

    Raises:
        TargetError: `patch_embed` is not there or holds no nn.Conv2d.
    """
    patch_embed = getattr(encoder, "patch_embed", None)
    modules = patch_embed.named_modules(prefix="patch_embed") if isinstance(patch_embed, nn.Module) else ()
    for name, layer in modules:
        if isinstance(layer, nn.Conv2d):
            return name, layer
    raise TargetError(f"{type(encoder).__name__} has no convolution in 'patch_embed'.")


def replace_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` in the place of the submodule with the dotted `name`.

    Raises:
        TargetError: there is no such submodule.
    """
    parent_name, _, child = name.rpartition(".")
    try:
        parent = root.get_submodule(parent_name)
        parent.get_submodule(child)
    except AttributeError as error:
        raise TargetError(f"{type(root).__name__} has no submodule {name!r}.") from error
    setattr(parent, child, new)


def trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def count_parameters(module: nn.Module) -> ParameterCount:
    """Number of trainable and of all parameters."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return ParameterCount(sum(n for n, trains in sizes if trains), sum(n for n, _ in sizes))


def adapter_state_dict(encoder: nn.Module) -> dict[str, Tensor]:
    """Exactly the trained parameters, by name, detached; they share memory with the encoder."""
    return {name: p.detach() for name, p in trainable_parameters(encoder).items()}


@torch.no_grad()
def load_adapter_state_dict(encoder: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into the trained parameters of an encoder in which the same method is installed.

    Raises:
        WeightsError: a name is missing or unexpected, or a shape differs; nothing has been copied then.
    """
    own = trainable_parameters(encoder)
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "misshapen": [
            f"{name} {tuple(state[name].shape)}, expected {tuple(p.shape)}"
            for name, p in own.items()
            if name in state and state[name].shape != p.shape
        ],
    }
    if any(problems.values()):
        lines = [f"  {kind} ({len(names)}): {'; '.join(names)}" for kind, names in problems.items() if names]
        raise WeightsError(
            "The adapter weights do not fit the installed method.\n" + "\n".join(lines) + "\n"
            "Install the method with the options, and on the backbone, that the weights were saved with."
        )
    for name, parameter in own.items():
        parameter.copy_(state[name])


def check_mergeable(encoder: nn.Module) -> None:
    """Check that `merge` is possible.

    Raises:
        ConfigError: a layer cannot be folded; says which and why.
    """
    for name, layer in encoder.named_modules():
        if isinstance(layer, Unmergeable):
            raise ConfigError(
                f"{name} ({type(layer).__name__}) cannot be merged: {layer.unmergeable_because}. "
                "Keep the adapter beside the backbone."
            )
    for name, parameter in encoder.named_parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            held = str(parameter.dtype).removeprefix("torch.")
            raise ConfigError(
                f"{name} is held in {held} since the model was first used in that precision; merged, it "
                "would stay rounded. Load the model again, and merge it first."
            )


def merge(encoder: nn.Module) -> None:
    """Fold every update into its plain layer, in place; merging again changes nothing. The result is frozen.

    Raises:
        ConfigError: a layer cannot be folded; nothing has been changed then.
    """
    check_mergeable(encoder)
    for name, layer in list(encoder.named_modules()):
        if isinstance(layer, Mergeable):
            replace_module(encoder, name, layer.merged().requires_grad_(False).train(encoder.training))


def announce_samples(module: nn.Module, images: int, keys: Sequence[int] | None = None) -> None:
    """Tell the layers that ask for it which images the next forward pass in training sees.

    Args:
        module: the adapted model.
        images: number of images in the batch.
        keys: a number for each image, its own in the whole run; without them noise is drawn anew each time.
    """
    asking = [m for m in module.modules() if isinstance(m, AsksForSamples)]
    for layer, asks in enumerate(asking):
        asks.samples = Samples(images, None if keys is None else tuple(keys), layer)


def auxiliary_loss(module: nn.Module) -> Tensor | None:
    """Sum of the side losses of the last forward pass, scalar; None where no layer has one."""
    losses = [m.aux_loss for m in module.modules() if isinstance(m, HasAuxLoss) and m.aux_loss is not None]
    return torch.stack(losses).sum() if losses else None


def forget_auxiliary_loss(module: nn.Module) -> None:
    """Let go of the side losses; one that was never run backward holds the activations of its whole pass."""
    for layer in module.modules():
        if isinstance(layer, HasAuxLoss):
            layer.aux_loss = None
