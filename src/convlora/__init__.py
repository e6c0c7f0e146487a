"""Fine-tune the Segment Anything Model on your own images with Conv-LoRA.

Public names are imported when they are first used, so that `import convlora` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from convlora._version import __version__

if TYPE_CHECKING:
    from convlora.adapters import (
        Adapter,
        BitFit,
        ConvLora,
        ConvLoraMultiScale,
        DecoderOnly,
        Full,
        Lora,
        Lst,
        SamAdapter,
        Ssf,
        Vpt,
    )
    from convlora.api import analyze, compare, evaluate, load, merge, predict, train
    from convlora.api_data import check, convert
    from convlora.checkpoint import from_pretrained, save_pretrained
    from convlora.errors import ConvLoraError
    from convlora.inference.predictor import Predictor
    from convlora.model import Segmenter

_HOMES = {
    "Adapter": "adapters",
    "BitFit": "adapters",
    "ConvLora": "adapters",
    "ConvLoraError": "errors",
    "ConvLoraMultiScale": "adapters",
    "DecoderOnly": "adapters",
    "Full": "adapters",
    "Lora": "adapters",
    "Lst": "adapters",
    "Predictor": "inference.predictor",
    "SamAdapter": "adapters",
    "Segmenter": "model",
    "Ssf": "adapters",
    "Vpt": "adapters",
    "analyze": "api",
    "check": "api_data",
    "compare": "api",
    "convert": "api_data",
    "evaluate": "api",
    "from_pretrained": "checkpoint",
    "load": "api",
    "merge": "api",
    "predict": "api",
    "save_pretrained": "checkpoint",
    "train": "api",
}

__all__ = [
    "Adapter",
    "BitFit",
    "ConvLora",
    "ConvLoraError",
    "ConvLoraMultiScale",
    "DecoderOnly",
    "Full",
    "Lora",
    "Lst",
    "Predictor",
    "SamAdapter",
    "Segmenter",
    "Ssf",
    "Vpt",
    "__version__",
    "analyze",
    "check",
    "compare",
    "convert",
    "evaluate",
    "from_pretrained",
    "load",
    "merge",
    "predict",
    "save_pretrained",
    "train",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"convlora.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'convlora' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
