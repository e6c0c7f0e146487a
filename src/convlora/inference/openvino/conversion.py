"""From a model to OpenVINO's intermediate representation (IR), a pair of files."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import torch
from torch import Tensor, nn

from convlora.adapters.conv_lora import ConvLoRALinear
from convlora.adapters.gating import NoisyTopKGate, SoftGate
from convlora.inference.openvino.forms import fast_forms
from convlora.inference.openvino.runtime import openvino
from convlora.model import SegmentationModel


class Logits(nn.Module):
    """The model with a plain tuple as output: mask logits, and class logits where the head has them."""

    def __init__(self, model: SegmentationModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Predict; see `Segmenter.forward`."""
        return tuple(part for part in self.model(image) if part is not None)


def convert(module: nn.Module, size: tuple[int, int], file: Path) -> None:
    """Write the IR of a module that takes one image.

    The size is fixed: windows, positions and the experts' matrices depend on it, and with known shapes the
    plugin chooses layouts and kernels once. Weights stay in float32; what is computed in bfloat16 is decided
    where the file is compiled. The gates of Conv-LoRA are marked to stay in float32 there, as they do under
    PyTorch's autocast: a choice between experts is not to turn on the rounding of its logits.

    Args:
        module: in evaluation mode, on the CPU; takes (1, 3, H, W) and returns a tensor or a tuple of some.
        size: H and W.
        file: NAME.xml; NAME.bin is written beside it.
    """
    ov = openvino()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    from openvino.passes import ConstantFolding, Manager

    example = torch.zeros(1, 3, *size)
    with torch.no_grad(), fast_forms(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes become constants: they are meant to
        traced = torch.jit.trace(module, example, check_trace=False)
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced, skip_freeze=True)  # read while converting: must stay alive
    model = frontend.convert(frontend.load(decoder))
    model.reshape([1, 3, *size])
    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    ov.save_model(model, file, compress_to_fp16=False)
    _keep_float32(file, tuple(_gate_scopes(module)))


def _gate_scopes(module: nn.Module) -> Iterator[str]:
    """Starts of the names of operations that decide between experts."""
    for name, layer in module.named_modules():
        if isinstance(layer, NoisyTopKGate | SoftGate):
            yield f"__module.{name}/"
        if isinstance(layer, ConvLoRALinear):
            yield f"__module.{name}/aten::mean"


def _keep_float32(file: Path, scopes: tuple[str, ...]) -> None:
    """Give operations the attribute `precise`, which OpenVINO's Python interface cannot set."""
    if not scopes:
        return
    tree = ElementTree.parse(file)
    for layer in tree.getroot().iterfind("layers/layer"):
        if not layer.get("name", "").startswith(scopes):
            continue
        info = layer.find("rt_info")
        if info is None:
            info = ElementTree.Element("rt_info")
            layer.insert(0 if layer.find("data") is None else 1, info)
        ElementTree.SubElement(info, "attribute", {"name": "precise", "version": "0"})
    tree.write(file)
