"""How far is a merged model from its adapter, in fp32 and in bf16? Prints JSON.

Every trained parameter of the method moves at random; then the mask logits of adapter and merged model are
compared, as the largest difference over the largest logit of the adapter in fp32.

    python benchmarks/merge_rounding.py [--backbones sam-tiny random:facebook/sam-vit-base] [--size 256]
"""

import argparse
import copy
import json
from typing import Any

import torch

from convlora.adapters import merge, trainable_parameters
from convlora.model import Segmenter


def measure(backbone: str, method: str, size: int) -> dict[str, Any]:
    """One row."""
    model = Segmenter.from_backbone(backbone, ("background", "object"), method, image_size=size).eval()
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(image).mask_logits
        torch.manual_seed(0)
        for name, parameter in trainable_parameters(model).items():
            if name.startswith("encoder."):
                parameter += 0.03 * torch.randn_like(parameter)
        merged = copy.deepcopy(model)
        merge(merged.encoder)
        exact, fp32 = model(image).mask_logits, merged(image).mask_logits
        with torch.autocast("cpu", torch.bfloat16):
            halves = [m(image).mask_logits.float() for m in (model, merged)]
    largest = exact.abs().max()
    others = {"the update itself": before, "fp32 merged": fp32, "bf16": halves[0], "bf16 merged": halves[1]}
    differences = {name: float((other - exact).abs().max() / largest) for name, other in others.items()}
    return {"backbone": backbone, "method": method, **differences}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=["sam-tiny", "random:facebook/sam-vit-base"])
    parser.add_argument("--size", type=int, default=256)
    options = parser.parse_args()
    rows = [
        measure(b, method, options.size) for b in options.backbones for method in ("lora", "ssf", "bitfit")
    ]
    print(json.dumps({"torch": torch.__version__, "size": options.size, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
