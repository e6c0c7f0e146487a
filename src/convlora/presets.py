"""Presets: what the defaults of a run are. What a preset decided is written out in the run's config.yaml."""

from collections.abc import Mapping
from typing import Any

#: What `--preset paper` changes: the official code's behaviour, quirks included (docs/paper.md tells each).
PAPER: dict[str, Any] = {
    "resize": "stretch",
    "augment": "flip",
    "loss": "official",
    "lr": 1e-4,
    "multiclass_head": "mask-classification",
    "micro_batch": 1,
    "epochs": 30,
    "patience": 10,
}
PRESETS: dict[str, dict[str, Any]] = {"default": {}, "paper": PAPER}

#: Conv-LoRA as `--preset default` has it: a router that learns (docs/results.md), with the official one's
#: parameters but for the noise's. A method's own defaults are the official ones.
LEARNED_ROUTER: dict[str, Any] = {
    "routing": "soft",
    "scope": "image",
    "start": "zero",
    "temperature": 0.03,
    "gain": 8.0,
}
_OTHER_ROUTER = {"routing", "top_k", "balance_weight"}


def preset_method(method: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """A method with the options that the preset gives it.

    Who gives Conv-LoRA's `routing`, or an option that the learned router has not, starts from the official
    one; any other option changes the learned router in that alone.

    Args:
        method: name and options; Conv-LoRA where there is no name.
        preset: name.
    """
    options = {"name": "conv-lora", **method}
    learns = preset == "default" and options["name"] == "conv-lora" and not _OTHER_ROUTER & options.keys()
    return {"name": "conv-lora", **LEARNED_ROUTER, **options} if learns else options
