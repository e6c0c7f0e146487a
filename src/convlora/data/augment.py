"""Random changes of image and mask together, through kornia; seeded by epoch and image."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convlora.data.masks import IGNORE
from convlora.data.transforms import mean_colour
from convlora.errors import ConfigError
from convlora.randomness import seeded


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths; zero switches a part off."""

    horizontal_flip: float = 0.5  # probability
    vertical_flip: float = 0.0
    colour: float = 0.0  # brightness, contrast, saturation; hue is a tenth of it
    scale: float = 0.0  # scale from 1 / (1 + s) to 1 + s
    shift: float = 0.0  # of the side

    @classmethod
    def preset(cls, name: str) -> "AugmentConfig":
        """`none`; `flip`, what the official Conv-LoRA code does; or `strong`, with colours, scale and shift.

        Raises:
            ConfigError: the name is none of them.
        """
        presets = {
            "none": cls(horizontal_flip=0),
            "flip": cls(),
            "strong": cls(colour=0.2, scale=0.25, shift=0.1),
        }
        if name not in presets:
            raise ConfigError(f"augment is '{name}'; it must be one of {', '.join(presets)}.")
        return presets[name]


class Augmenter:
    """Applies the changes to one image and its mask.

    Args:
        config: strengths.
    """

    def __init__(self, config: AugmentConfig) -> None:
        from kornia import augmentation as K  # half a second to import, and prediction does not need it

        self.config = config
        geometry: list[Any] = []
        if config.horizontal_flip:
            geometry.append(K.RandomHorizontalFlip(p=config.horizontal_flip))
        if config.vertical_flip:
            geometry.append(K.RandomVerticalFlip(p=config.vertical_flip))
        if config.scale or config.shift:
            scale = (1 / (1 + config.scale), 1 + config.scale)
            shift = (config.shift, config.shift)
            geometry.append(K.RandomAffine(0.0, translate=shift, scale=scale, p=0.9))
        self.geometry = K.AugmentationSequential(*geometry, data_keys=["input", "mask"]) if geometry else None
        c = config.colour
        # factors on the colours: kornia's ColorJiggle adds to them, and what is dark is black then
        self.colour = K.ColorJitter(c, c, c, c / 10, p=0.8) if c else None

    def is_flipped(self, seed: int) -> bool:
        """Whether `__call__` flips horizontally with this seed, as all that it does.

        Raises:
            ValueError: it does more than that.
        """
        config = self.config
        if config.vertical_flip or config.scale or config.shift or config.colour:
            raise ValueError("the augmentation is more than a horizontal flip")
        if self.geometry is None:
            return False
        with seeded(seed):
            (drawn,) = self.geometry.forward_parameters(torch.Size((1, 3, 1, 1)))  # kornia's own draw
        values: Any = drawn.data
        return bool(values["batch_prob"] > 0.5)

    def __call__(
        self, image: Tensor, mask: Tensor, seed: int, valid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Change image and mask; padding, also what moves in from outside, has the mean colour, is ignored.

        Args:
            image: (3, S, S) float in [0, 1].
            mask: (S, S) uint8 ids.
            seed: decides everything; the caller's random state is left as it was.
            valid: (S, S) bool, False in the padding; by default there is none.
        """
        valid = torch.ones_like(mask, dtype=torch.bool) if valid is None else valid
        mean = mean_colour(image)
        with seeded(seed):
            if self.geometry is not None:
                # kornia fills with 0: the mean colour and 'not valid' must be 0 there
                moved, labels = self.geometry((image - mean)[None], torch.stack([mask, valid])[None].float())
                image, mask = moved[0] + mean, labels[0, 0].round().to(torch.uint8)
                valid = labels[0, 1] > 0.5
            if self.colour is not None:
                image = self.colour(image[None])[0]
        return torch.where(valid, image, mean), torch.where(valid, mask, IGNORE)
