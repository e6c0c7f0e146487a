"""Trainings that are made on the CPU, in another process, and on the device."""

from typing import Any

OPTIONS = {
    "max_steps": 4,
    "eval_every": 2,
    "image_size": 64,
    "previews": 1,
    "batch_size": 4,
    "micro_batch": 2,
    "precision": "fp32",
}

#: Name -> fixture of the data, options.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "conv-lora": ("binary_data", {"method": {"name": "conv-lora"}}),
    "paper": ("binary_data", {"preset": "paper", "lr": 1e-3, "checkpointing": True}),
    "decoder-only": ("binary_data", {"method": {"name": "decoder-only"}}),  # from kept embeddings
    "lora": ("three_class_data", {"method": {"name": "lora"}}),
    "mask-classification": (
        "three_class_data",
        {"method": {"name": "lora"}, "multiclass_head": "mask-classification"},
    ),
}
