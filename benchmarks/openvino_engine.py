"""Seconds of the image encoder, plain and with Conv-LoRA, with OpenVINO and with PyTorch, in turn.

Sides, each in bf16 and fp32: transformers' SamModel encoder with sdpa (`transformers`); our encoder
(`torch`); the conversion of transformers' encoder by OpenVINO's own convert_model (`anchor`); the conversion
of ours, plain (`plain`) and with Conv-LoRA (`adapted`). All have the same random weights, the update of the
adapter is not zero. Every conversion is compared with PyTorch's float32 before it is timed. PyTorch's sides
are run fewer times (--torch-repeats; 0 leaves them out): they take longest. bf16 is left out where the
processor has no arithmetic for it.

    python benchmarks/openvino_engine.py
    python benchmarks/openvino_engine.py --image-size 512 --repeats 20 --precisions bf16
"""

import copy
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common import (
    dtypes,
    in_turn,
    parser,
    random_transformers_sam,
    randomise,
    ratio,
    report,
    seconds,
    summary,
)
from convlora import adapters
from convlora.backbone.weights import load_sam
from convlora.inference.openvino.conversion import convert
from convlora.inference.openvino.runtime import compile_model, openvino
from convlora.presets import LEARNED_ROUTER

DTYPES = {"bf16": torch.bfloat16, "fp32": None}


class Theirs(nn.Module):
    """The vision encoder of transformers, image to embedding."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: Tensor) -> Tensor:
        """Embed."""
        return self.encoder(image)[0]


def main() -> None:
    options = parser(
        __doc__,
        backbone="facebook/sam-vit-base",
        image_size=1024,
        repeats=7,
        torch_repeats=2,
        rank=3,
        method="conv-lora",
        router="official",  # or: learned, the default preset's
        precisions="bf16,fp32",
    )
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    image = torch.randn(1, 3, chosen.image_size, chosen.image_size)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        learned = {"official": {}, "learned": LEARNED_ROUTER}[chosen.router]
        method = adapters.build_method(chosen.method, {"rank": chosen.rank, **learned})
        modules = models(chosen.backbone, chosen.image_size, method, folder)
        files, converting = convert_all(modules, image, folder)
        expected = {side: modules[side](image) for side in modules}
        result: dict[str, Any] = {"arguments": vars(chosen), "seconds_to_convert": converting}
        precisions, left_out = dtypes(chosen.precisions)
        result |= left_out
        for precision in precisions:
            result[precision] = measure(modules, files, expected, image, precision, chosen)
    report("openvino_engine", result, "openvino", "transformers")


def models(backbone: str, size: int, method: adapters.Method, folder: Path) -> dict[str, nn.Module]:
    """Our encoder without and with the adapter, and transformers', with the same weights."""
    from transformers import SamModel

    random_transformers_sam(backbone, size, folder / "sam")
    plain = load_sam(str(folder / "sam")).sam.image_encoder
    adapted = copy.deepcopy(plain)
    adapters.install(adapted, method)
    randomise(adapted)
    theirs = Theirs(SamModel.from_pretrained(folder / "sam", attn_implementation="sdpa").vision_encoder)
    found = {"plain": plain, "adapted": adapted, "theirs": theirs}
    return {name: module.eval().requires_grad_(False) for name, module in found.items()}


def convert_all(
    modules: dict[str, nn.Module], image: Tensor, folder: Path
) -> tuple[dict[str, Path], dict[str, float]]:
    """Conversions, and the seconds they took."""
    files = {name: folder / f"{name}.xml" for name in modules}
    size = (image.shape[2], image.shape[3])

    def theirs() -> None:
        ov = openvino()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            model = ov.convert_model(modules["theirs"], example_input=image, input=[tuple(image.shape)])
        ov.save_model(model, files["theirs"], compress_to_fp16=False)

    spent = {
        "plain": seconds(lambda: convert(modules["plain"], size, files["plain"])),
        "adapted": seconds(lambda: convert(modules["adapted"], size, files["adapted"])),
        "anchor": seconds(theirs),
    }
    return files, {name: round(value, 1) for name, value in spent.items()}


def measure(
    modules: dict[str, nn.Module],
    files: dict[str, Path],
    expected: dict[str, Tensor],
    image: Tensor,
    precision: str,
    chosen: Any,  # noqa: ANN401  # argparse.Namespace
) -> dict[str, Any]:
    dtype = DTYPES[precision]

    def torch_side(module: nn.Module) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                return module(image)

        return run

    names = {"anchor": "theirs", "plain": "plain", "adapted": "adapted"}
    compiled = {side: compile_model(str(files[name]), dtype) for side, name in names.items()}
    pixels = image.numpy()
    errors = {
        side: relative(compiled[side]([pixels])[0], expected[name].numpy()) for side, name in names.items()
    }
    errors["torch"] = relative(torch_side(modules["plain"])().float().numpy(), expected["plain"].numpy())
    runs = {side: (lambda c=c: c([pixels])) for side, c in compiled.items()}
    times = in_turn(runs, chosen.repeats)
    slow = {"transformers": torch_side(modules["theirs"]), "torch": torch_side(modules["plain"])}
    slow_times = in_turn(slow, chosen.torch_repeats) if chosen.torch_repeats else {}
    return {
        "seconds": summary({**slow_times, **times}),
        "adapted_over_plain": ratio(times["adapted"], times["plain"]),
        "plain_over_anchor": ratio(times["plain"], times["anchor"]),
        "relative_error": errors,
    }


def relative(output: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference over that of the reference."""
    return float(f"{np.sqrt(np.square(output - expected).mean() / np.square(expected).mean()):.2e}")


if __name__ == "__main__":
    main()
