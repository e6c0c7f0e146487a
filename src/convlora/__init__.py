"""Fine-tune the Segment Anything Model on your own images with Conv-LoRA."""

from convlora._version import __version__

__all__ = ["__version__"]
