"""A baseline that is not SAM: MONAI's U-Net, trained from random weights by the same code."""

from collections.abc import Sequence

from torch import Tensor, nn

from convlora.adapters import Full
from convlora.errors import ConfigError, MissingExtraError
from convlora.head import HeadOutput, SegmentationHead
from convlora.model import SegmentationModel, SegmenterConfig
from convlora.randomness import seeded

#: Value of `backbone` that stands for it.
UNET = "unet"
_DEFAULT_SIZE, _STEP = 256, 16  # it halves the image four times


class Unet(SegmentationModel):
    """U-Net (Ronneberger et al., MICCAI 2015) as MONAI's `BasicUNet` has it: 1,979,010 parameters, binary.

    Five levels of 32 to 256 channels, two 3x3 convolutions each with instance norm and leaky ReLU,
    transposed convolutions upwards. Differs from the original in norm, activation, padding (the output is as
    large as the input) and width. It predicts at the input's resolution; nothing in it is pretrained.

    Args:
        config: backbone 'unet', method 'full', head binary or per-class; other heads need SAM's mask tokens.

    Raises:
        ConfigError: another method or head, or a size that it cannot halve four times.
        MissingExtraError: MONAI is not installed.
    """

    def __init__(self, config: SegmenterConfig) -> None:
        _check(config)
        super().__init__(config)
        self.head = SegmentationHead(config.head, len(config.classes), config.num_masks, dim=1)
        self.encoder = _build(1 if config.head == "binary" else len(config.classes))

    @property
    def embed_dim(self) -> int:
        """Most channels."""
        return 256

    @classmethod
    def from_scratch(cls, config: SegmenterConfig, seed: int = 0) -> "Unet":
        """Build it with random weights of a seed; the caller's random state is left as it was."""
        with seeded(seed):
            return cls(config)

    def forward(self, image: Tensor, keys: Sequence[int] | None = None) -> HeadOutput:
        """Predict: (B, 3, H, W) normalised to logits (B, 1 or K, H, W); `keys` are not needed."""
        return HeadOutput(self.encoder(image), None)


def unet_size(image_size: int | None) -> int:
    """Side of the input: as asked, else 256."""
    return image_size or _DEFAULT_SIZE


def _check(config: SegmenterConfig) -> None:
    if config.method != Full.name:
        raise ConfigError(
            f"method is {config.method}, but the backbone 'unet' has no frozen part to adapt. "
            "Use --method full."
        )
    if config.head == "mask-classification":
        raise ConfigError(
            "multiclass_head is mask-classification, which needs SAM's mask tokens; the backbone 'unet' has "
            "none. Use multiclass_head=per-class."
        )
    if config.image_size % _STEP:
        raise ConfigError(
            f"image_size is {config.image_size}; for the backbone 'unet' it must be a multiple of {_STEP}."
        )


def _build(channels: int) -> nn.Module:
    try:
        from monai.networks.nets.basic_unet import BasicUNet
    except ImportError as error:
        raise MissingExtraError("The backbone 'unet'", "unet", "monai") from error
    network: nn.Module = BasicUNet(spatial_dims=2, in_channels=3, out_channels=channels)
    return network
