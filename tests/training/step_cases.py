"""One step on four images, for each head's default loss: the same in one process and in two."""

import torch

from convlora.adapters import ConvLora, build_method, methods, trainable_parameters
from convlora.model import Segmenter
from convlora.training.loop import Loop
from convlora.training.plan import Plan

CASES = {
    "binary": {"classes": 2, "head": "binary", "loss": "default"},
    "per-class": {"classes": 3, "head": "per-class", "loss": "default"},
    "mask-classification": {"classes": 3, "head": "mask-classification", "loss": "default"},
}


#: Methods, each with the default loss of the binary head.
METHODS = {
    **{name: build_method(name) for name in methods() if name != "conv-lora"},
    "switch": ConvLora(routing="switch", top_k=2, scope="image", scales=(1, 2, 3)),
    "soft-pixel": ConvLora(routing="soft-pixel", scales=(1, 2)),
}


def adapted(backbone, name):
    """A model with one of METHODS whose trained parameters have all moved."""
    model = Segmenter.from_backbone(str(backbone), ("class 0", "class 1"), METHODS[name])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainable_parameters(model).values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.train()


def segmenter(backbone, case):
    model = Segmenter.from_backbone(
        str(backbone), [f"class {i}" for i in range(case["classes"])], head=case["head"]
    )
    torch.manual_seed(0)
    for block in model.encoder.blocks:
        torch.nn.init.normal_(block.attn.qkv.lora_B, std=0.1)
    return model.train()


def batches(case):
    """Four images, one each, so each process accumulates; one is ignored but for a strip, one entirely."""
    torch.manual_seed(1)
    image, mask = torch.randn(4, 3, 64, 64), torch.randint(0, case["classes"], (4, 64, 64))
    mask[1, 4:] = 255
    mask[2] = 255
    key = torch.tensor([14, 15, 16, 17])  # chosen so that the processes share one expert and not two others
    return [{"image": image[i : i + 1], "mask": mask[i : i + 1], "key": key[i : i + 1]} for i in range(4)]


def gradients(accelerator, model, objective, mine, processes):
    """Gradients of one step are left in the parameters; returns the mean of the images' losses."""
    plan = Plan(1, 4, len(mine[0]["key"]), processes, 1e-3, 1)
    loop = Loop(accelerator, model, torch.optim.SGD(model.parameters()), objective, plan, 1.0, None)
    loss = loop._gradients(mine)
    return accelerator.reduce(loss, "mean")
