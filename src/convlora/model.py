"""The model that is fine-tuned: the only place where SAM, a method and a head meet."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from convlora import adapters
from convlora.backbone.image_encoder import ImageEncoder
from convlora.backbone.presets import BACKBONES, SamSpec
from convlora.backbone.sam import Sam
from convlora.backbone.weights import LoadedSam, load_sam
from convlora.errors import ConfigError
from convlora.head import HeadKind, HeadOutput, SegmentationHead
from convlora.randomness import seeded
from convlora.recompute import without_draws

#: How images are brought to the encoder's square: keep the aspect and pad, or stretch (the paper).
RESIZE_MODES = ("pad", "stretch")
_MOST_CLASSES = 255  # ids are uint8, and 255 is 'ignore'


@dataclass(frozen=True)
class SegmenterConfig:
    """All that is needed to build a model again from its backbone: the content of adapter_config.json.

    Raises:
        ConfigError: names of classes repeat or are more than 255, or `resize` is not of `RESIZE_MODES`: a
            model with them would train, but its adapter folder could not be loaded.
    """

    backbone: str
    classes: tuple[str, ...]
    method: str
    method_options: dict[str, Any] = field(default_factory=dict)
    head: HeadKind = "binary"
    num_masks: int = 0
    image_size: int = 1024
    resize: str = "stretch"
    backbone_fingerprint: str = ""

    def __post_init__(self) -> None:
        twice = sorted(name for name in set(self.classes) if self.classes.count(name) > 1)
        if twice:
            raise ConfigError(f"The class '{twice[0]}' is there twice. Give every class a name of its own.")
        if len(self.classes) > _MOST_CLASSES:
            raise ConfigError(f"There are {len(self.classes)} classes; at most {_MOST_CLASSES} are possible.")
        if self.resize not in RESIZE_MODES:
            raise ConfigError(f"resize is '{self.resize}'; it must be one of {', '.join(RESIZE_MODES)}.")

    @classmethod
    def for_sam(
        cls,
        spec: SamSpec,
        source: str,
        classes: Sequence[str],
        method: adapters.Method,
        *,
        head: HeadKind | None = None,
        num_masks: int | None = None,
        image_size: int | None = None,
        resize: str = "stretch",
        fingerprint: str = "",
    ) -> Self:
        """What a model on a SAM of this shape is built from, with the defaults of `Segmenter.from_backbone`.

        Args:
            spec: of the SAM.
            source: what it was loaded from, as `load_sam` takes it.
            classes: see `from_backbone`, as all that follow.
            method: with its options.
            head: see there.
            num_masks: see there.
            image_size: see there.
            resize: see there.
            fingerprint: of the SAM's weights.
        """
        return cls(
            backbone=source,
            classes=tuple(classes),
            method=method.name,
            method_options=_plain_options(method),
            head=head or default_head(len(classes)),
            num_masks=num_masks or max(10, len(classes)),
            image_size=image_size or spec.encoder.image_size,
            resize=resize,
            backbone_fingerprint=fingerprint,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return dataclasses.asdict(self) | {"classes": list(self.classes)}


#: Names of id 0 that mean 'none of the classes'; such a class is left out of the foreground.
_BACKGROUND_NAMES = frozenset({"background", "bg", "unlabeled", "unlabelled", "void", "none", "other"})


def foreground_ids(classes: Sequence[str]) -> tuple[int, ...]:
    """Ids that count as foreground: 1 in binary; else all, but for an id 0 whose name says background."""
    if len(classes) == 2:
        return (1,)
    skip = 1 if classes[0].strip().lower() in _BACKGROUND_NAMES else 0
    return tuple(range(skip, len(classes)))


def count_on_preset(backbone: str, method: str) -> adapters.ParameterCount:
    """Trained and all parameters of a method on a preset, binary; no memory is taken (meta device).

    Raises:
        ConfigError: there is no such preset or method.
    """
    if backbone not in BACKBONES:
        raise ConfigError(f"'{backbone}' is no preset; the presets are {', '.join(BACKBONES)}.")
    with torch.device("meta"):
        config = SegmenterConfig(
            backbone, ("background", "foreground"), method, image_size=BACKBONES[backbone].encoder.image_size
        )
        return Segmenter(Sam(BACKBONES[backbone]), config).count_parameters()


def default_head(num_classes: int) -> HeadKind:
    """Binary for background and foreground, else one token per class."""
    return "binary" if num_classes == 2 else "per-class"


class SegmentationModel(nn.Module, ABC):
    """What training, prediction and files need of a model: SAM with an adapter, or a baseline.

    Args:
        config: all that it is built from.
    """

    encoder: nn.Module
    head: SegmentationHead
    largest_image: tuple[int, int] | None = None
    """(H, W) of the largest image that it was trained on, where an adapter folder says so."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config

    @property
    @abstractmethod
    def embed_dim(self) -> int:
        """Width of the encoder, which decides the default learning rate."""

    @property
    def encoder_is_untouched(self) -> bool:
        """Whether training leaves the whole encoder as it is, so that an image's embedding never changes."""
        return False

    @abstractmethod
    def forward(self, image: Tensor, keys: Sequence[int] | None = None) -> HeadOutput:
        """Predict; see `Segmenter.forward`."""

    def auxiliary_loss(self) -> Tensor | None:
        """Sum of the method's own losses of the last forward pass in training, if it has any."""
        return adapters.auxiliary_loss(self.encoder)

    def count_parameters(self) -> adapters.ParameterCount:
        """Return the trained and all parameters."""
        return adapters.count_parameters(self)


class Segmenter(SegmentationModel):
    """SAM without prompts: adapted encoder, trained mask decoder, head.

    The prompt encoder stays frozen and gives two things: the positional encoding of the image and the learned
    embedding that stands for 'no mask' (as Conv-LoRA does). The IoU head is frozen, as in the official
    code: nothing reads it.

    Args:
        sam: backbone with its weights; it is changed in place.
        config: see `SegmenterConfig`.
    """

    def __init__(self, sam: Sam, config: SegmenterConfig) -> None:
        _check_image_size(config.image_size, sam.spec.encoder.patch_size)
        super().__init__(config)
        self.encoder: ImageEncoder = sam.image_encoder
        self.prompts = sam.prompt_encoder
        self.decoder = sam.mask_decoder
        self.head = SegmentationHead(
            config.head, len(config.classes), config.num_masks, dim=sam.spec.decoder.dim
        )
        self.head.equip(self.decoder)
        self.method = adapters.build_method(config.method, config.method_options)
        self._choose_trained()

    @classmethod
    def from_backbone(
        cls,
        backbone: str | Path | LoadedSam,
        classes: Sequence[str],
        method: str | adapters.Method = "conv-lora",
        *,
        head: HeadKind | None = None,
        num_masks: int | None = None,
        image_size: int | None = None,
        resize: str = "stretch",
        seed: int = 0,
    ) -> Self:
        """Build a model to be trained.

        Args:
            backbone: what `load_sam` takes, or what it returned. That becomes part of the model: load it
                again for the next one.
            classes: names of the classes, id 0 first; two names make it binary.
            method: name of a method with its default options, or a method such as `ConvLora(rank=8)`.
            head: see `SegmentationHead`; by default binary or per-class.
            num_masks: mask tokens of mask classification; by default max(10, classes).
            image_size: side of the encoder's square input in pixels; by default the backbone's own.
            resize: 'stretch' or 'pad'; see `RESIZE_MODES`.
            seed: of the new parameters; the caller's random state is left as it was.

        Raises:
            WeightsError: the backbone cannot be loaded.
            ConfigError: an option is not valid.
        """
        names = tuple(classes) if isinstance(classes, Iterable) and not isinstance(classes, str) else ()
        if len(names) < 2 or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"classes is {classes!r}; it must be a list of 2 to 255 names, id 0 first.")
        loaded = backbone if isinstance(backbone, LoadedSam) else load_sam(backbone)
        chosen = adapters.build_method(method) if isinstance(method, str) else method
        config = SegmenterConfig.for_sam(
            loaded.sam.spec,
            loaded.source,
            names,
            chosen,
            head=head,
            num_masks=num_masks,
            image_size=image_size,
            resize=resize,
            fingerprint=loaded.fingerprint,
        )
        with seeded(seed):
            return cls(loaded.sam, config)

    def forward(self, image: Tensor, keys: Sequence[int] | None = None, embedded: bool = False) -> HeadOutput:
        """Predict.

        Args:
            image: (B, 3, H, W) normalised; H and W multiples of the patch. Or, where `embedded`, what `embed`
                gave for them, channel last: (B, h, w, dim).
            embedded: see `image`.
            keys: in training, a number for each image that is its own in the run: the method's noise then
                depends on these alone, not on the batch or the process.

        Returns:
            Logits at four times the embedding's resolution; see `HeadOutput`.
        """
        if embedded:
            return self.decode(image.permute(0, 3, 1, 2))
        if not self.training:
            return self.decode(self.encoder(image))
        if self.encoder_is_untouched:
            return self.decode(self.embed(image))
        adapters.announce_samples(self.encoder, len(image), keys)
        with nullcontext() if keys is None else without_draws():
            embedding = self.encoder(image)
        return self.decode(embedding)

    @torch.no_grad()
    def embed(self, image: Tensor) -> Tensor:
        """Embeddings (B, dim, h, w) of images (B, 3, H, W), laid out channel last, without a graph.

        One image at a time: the bits of an embedding do not hang on the images beside it.
        """
        embeddings = torch.cat([self.encoder(one) for one in image.split(1)])
        return embeddings.contiguous(memory_format=torch.channels_last)

    def decode(self, embedding: Tensor) -> HeadOutput:
        """As `forward`, from an image embedding (B, dim, h, w)."""
        positions = self.prompts.image_positions(embedding.shape[2], embedding.shape[3])
        dense = embedding + self.prompts.no_mask()
        decoded = self.decoder.decode(dense, positions.to(dense.dtype))
        return self.head(decoded.mask_tokens, self.decoder.masks(decoded))

    @property
    def encoder_is_untouched(self) -> bool:
        """See `SegmentationModel`; so is every encoder whose method says `trains_encoder = False`."""
        return not self.method.trains_encoder

    @property
    def embed_dim(self) -> int:
        """Width of SAM's encoder."""
        return self.encoder.spec.embed_dim

    def _choose_trained(self) -> None:
        self.requires_grad_(False)
        adapters.install(self.encoder, self.method)
        self.decoder.requires_grad_(True)
        self.decoder.iou_prediction_head.requires_grad_(False)
        self.head.requires_grad_(True)


def _plain_options(method: adapters.Method) -> dict[str, Any]:
    """Options as JSON gives them back: lists, not tuples."""
    options = dataclasses.asdict(method)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}


def _check_image_size(image_size: int, patch: int) -> None:
    if image_size < patch or image_size % patch:
        below = max(0, image_size // patch * patch)
        nearest = f"{below} or {below + patch}" if below else f"{patch}"
        raise ConfigError(
            f"image_size is {image_size}; it must be a multiple of the backbone's patch size {patch}. "
            f"Use {nearest}."
        )
