"""The label of an image, wherever it is kept: a mask file, or shapes that are painted when they are read."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from convlora.data.images import open_image
from convlora.data.masks import MaskEncoding, decode, values_of
from convlora.data.palette import Palette, colours_of


class Label(ABC):
    """What says which class every pixel of one image has.

    A label can be pickled for another process, and is equal to another one that is kept in the same place.
    """

    @property
    @abstractmethod
    def path(self) -> Path:
        """File to name in messages; it need not exist where a missing file means 'nothing labelled'."""

    @property
    def name(self) -> str:
        """Short name for messages."""
        return self.path.name

    @property
    def stem(self) -> str:
        """Name that a mask shares with its image."""
        return self.path.stem

    @property
    def suffix(self) -> str:
        """Ending of the file."""
        return self.path.suffix

    def __str__(self) -> str:
        return str(self.path)

    @abstractmethod
    def read(self) -> np.ndarray:
        """The values, (H, W) uint8, not yet interpreted by the encoding of the whole set.

        Raises:
            FileError: the file cannot be read or does not hold a label.
        """

    def digest(self, values: np.ndarray) -> str:
        """Hash for the fingerprint of the data; it changes whenever the label does.

        Args:
            values: what `read` gave.
        """
        return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()


@dataclass(frozen=True)
class MaskFile(Label):
    """A mask in a file of its own: class ids, or colours where there is a palette."""

    file: Path
    palette: Palette | None = field(default=None, compare=False)

    @property
    def path(self) -> Path:
        """The mask file."""
        return self.file

    def read(self) -> np.ndarray:
        """See `Label.read`."""
        return self.interpret(open_image(self.file))

    def interpret(self, image: Image.Image) -> np.ndarray:
        """`read` of a file that is decoded already."""
        return colours_of(image, self.file, self.palette) if self.palette else values_of(image, self.file)

    def digest(self, values: np.ndarray) -> str:
        """Hash of the file's bytes; with a palette, of the ids."""
        if self.palette:
            return super().digest(values)
        return hashlib.sha256(self.file.read_bytes()).hexdigest()


def read_label(label: Label, encoding: MaskEncoding) -> np.ndarray:
    """Read a label as class ids.

    Returns:
        (H, W) uint8; 255 is 'ignore'.

    Raises:
        FileError: see `Label.read`; or a binary mask holds another value than 0 and 255.
    """
    return decode(label.read(), encoding, label.path)
