"""Run by each of two processes: several scenes of training together in one launch, as a launch takes seconds.

Arguments: folder of the test, backbone, binary data, data of three classes. Writes what the test compares.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from step_cases import CASES, METHODS, adapted, batches, gradients, segmenter

from convlora.adapters import trainable_parameters
from convlora.config import make_config
from convlora.data.check import check_dataset
from convlora.errors import ConvLoraError
from convlora.model import Segmenter
from convlora.training import fit as fit_module
from convlora.training.fit import fit
from convlora.training.objective import make_objective
from convlora.training.processes import check_agreement
from convlora.training.report import Reporter
from convlora.training.validation import Validation

torch.set_num_threads(1)


def gradients_of_a_step(folder, backbone):
    """Two images for each process; what the first holds after the gradients were averaged."""
    for name, case in CASES.items():
        accelerator = Accelerator(cpu=True)
        model = segmenter(backbone, case)
        wrapped = accelerator.prepare(model)
        routed = []
        gate = model.encoder.blocks[1].attn.qkv.gate
        gate.register_forward_hook(lambda m, a, out, routed=routed: routed.append(out.indices))
        mine = batches(case)[2 * accelerator.process_index :][:2]
        loss = gradients(accelerator, wrapped, make_objective(model, case["loss"]), mine, processes=2)
        state = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        state["experts"] = accelerator.gather(torch.cat(routed))
        state["loss"] = loss
        if accelerator.is_main_process:
            save_file({k: v.contiguous() for k, v in state.items()}, folder / f"{name}.safetensors")


def gradients_of_each_method(folder, backbone):
    """As above for the other methods: every trained parameter must get a gradient in every process."""
    case = CASES["binary"]
    for name in METHODS:
        accelerator = Accelerator(cpu=True)
        model = adapted(backbone, name)
        wrapped = accelerator.prepare(model)
        mine = batches(case)[2 * accelerator.process_index :][:2]
        loss = gradients(accelerator, wrapped, make_objective(model, "default"), mine, processes=2)
        state = {key: p.grad.contiguous() for key, p in trainable_parameters(model).items()}
        if accelerator.is_main_process:
            save_file({**state, "loss": loss}, folder / f"method {name}.safetensors")


def validate(folder, backbone, data):
    """Three images over two processes, then one image."""
    accelerator = Accelerator(cpu=True)
    report = check_dataset(data)
    for count in (3, 1):
        out = folder / f"validated{count}"
        config = make_config({"data": data, "out": out, "backbone": str(backbone), "image_size": 64})
        report.dataset.splits["val"] = report.dataset.splits["val"][:count]
        model = fit_module._build(config, report.dataset)
        with Reporter(out, 1, config.metric, enabled=False) as reporter:
            scores = Validation(config, report.dataset, model, accelerator, reporter, "")._scores(1)
        (folder / f"scores{count}_{accelerator.process_index}.json").write_text(json.dumps(scores))
        accelerator.wait_for_everyone()


def interrupted(folder, backbone, data):
    """A signal in the second process alone ends both after the same step; then both go on to the end."""
    rank = int(os.environ["RANK"])
    config = make_config(json.loads((folder / "interrupted.json").read_text()))
    real = fit_module.Loop._step

    def step(self, images):
        if self.done == 2 and rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, images)

    fit_module.Loop._step = step
    try:
        fit(config)
    except KeyboardInterrupt:
        (folder / f"interrupted{rank}").touch()
    fit_module.Loop._step = real
    Accelerator(cpu=True).wait_for_everyone()
    if rank == 0:
        shutil.copytree(config.out, folder / "cut")
    Accelerator(cpu=True).wait_for_everyone()
    fit(config, resume=True)


def threads():
    """Of the connection in this process; none where Linux's list of threads is missing."""
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    return names.count("pt_gloo_runloop")


def kept(folder):
    """Each computes its share of the embeddings and takes the other's from the folder."""
    config = make_config(json.loads((folder / "kept.json").read_text()))
    passes, real = [], Segmenter.embed

    def embed(self, image):
        passes.append(len(image))
        return real(self, image)

    Segmenter.embed = embed
    connected = threads()
    fit(config)
    Segmenter.embed = real
    rank = os.environ["RANK"]
    (folder / f"passes{rank}.json").write_text(json.dumps(passes))
    (folder / f"threads{rank}.json").write_text(json.dumps([connected, threads()]))


def disagree(folder, data, other):
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    try:
        check_agreement(accelerator, configuration="same", data=str((data, other)[rank]))
    except ConvLoraError as error:
        (folder / f"disagree{rank}.txt").write_text(str(error))


def main():
    folder, backbone, binary, three = map(Path, sys.argv[1:])
    end_training = Accelerator.end_training
    Accelerator.end_training = lambda self: None  # the next scene needs the processes connected
    gradients_of_a_step(folder, backbone)
    gradients_of_each_method(folder, backbone)
    validate(folder, backbone, three)
    interrupted(folder, backbone, binary)
    disagree(folder, binary, three)
    Accelerator.end_training = end_training
    kept(folder)


main()
