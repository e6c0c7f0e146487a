"""What a run would do, without doing it: data, model, steps, memory."""

from dataclasses import asdict, dataclass, field
from typing import Any

import psutil
import torch

from convlora.backbone.presets import BACKBONES, SamSpec
from convlora.backbone.sam import Sam
from convlora.backbone.weights import load_sam
from convlora.config import RunConfig
from convlora.data.check import check_dataset
from convlora.data.dataset import bytes_kept
from convlora.data.gather import gathered
from convlora.data.layout import DataSet
from convlora.data.splits import limit_training, lost_classes, read_record
from convlora.embedding_store import cache_folder, cache_limit
from convlora.errors import ConfigError
from convlora.inference.device import advised_half, autocast_dtype, slowness, training_dtype
from convlora.model import Segmenter, SegmenterConfig
from convlora.training.memory import MIB, StepMemory, estimate_peak, simulate_step
from convlora.training.notes import blank_masks, made_splits, remarks, thin_areas
from convlora.training.objective import choose_head
from convlora.training.plan import Plan, make_plan
from convlora.training.processes import check_launcher_variables, meet
from convlora.training.validation import check_metric
from convlora.unet import UNET

_ROOM = 0.9  # of the free memory that a run may take


@dataclass(frozen=True)
class DryRun:
    """What would happen; `to_dict` for programs, `lines` for people."""

    images: dict[str, int]
    class_shares: dict[str, float]  # of the labelled training pixels
    backbone: str
    method: dict[str, Any]
    trained_parameters: dict[str, int]  # of the encoder, the decoder, the head
    all_parameters: int
    image_size: int
    precision: str
    device: str
    plan: Plan
    memory_mib: int
    free_mib: int
    step: StepMemory
    checkpointing: bool = False
    resumed: bool = False  # then only some options may change
    embeddings_mb: int = 0  # at most so many are kept on disk
    remarks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether the estimate leaves a tenth of the free memory."""
        return self.memory_mib < _ROOM * self.free_mib

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self) | {"fits": self.fits}

    def lines(self) -> list[str]:
        """Text for people."""
        plan, trained = self.plan, sum(self.trained_parameters.values())
        parts = ", ".join(f"{name} {count:,}" for name, count in self.trained_parameters.items())
        epochs = plan.steps * plan.batch_size / max(1, self.images["train"])
        return [
            *(f"warning: {line}" for line in self.warnings),
            *(f"note: {line}" for line in self.remarks),
            "images: " + ", ".join(f"{count} {split}" for split, count in self.images.items()),
            "classes (share of the training pixels): "
            + ", ".join(f"{name} {100 * share:.1f} %" for name, share in self.class_shares.items()),
            f"model: {self.method['name']} on {self.backbone}; {trained:,} of {self.all_parameters:,} "
            f"parameters trained ({100 * trained / self.all_parameters:.2f} %): {parts}",
            f"input: {self.image_size} px, {self.precision} on {self.device}",
            f"steps: {plan.steps} of {plan.batch_size} images ({epochs:.1f} epochs), {plan.micro_batch} at "
            f"once on each of {plan.processes} process{'es' if plan.processes > 1 else ''}; validation every "
            f"{plan.eval_every} steps; learning rate {plan.lr:g}",
            f"memory: about {self.memory_mib:,} MiB at its peak; {self.free_mib:,} MiB are free "
            f"on {self.device}: " + ("fits" if self.fits else f"does not fit. {self._advice()}"),
            *([self._embeddings()] if self.embeddings_mb else []),
            "Nothing was trained or written.",
        ]

    def _embeddings(self) -> str:
        limit = f"{cache_limit() / 10**9:g} GB"
        return f"embeddings: at most {self.embeddings_mb:,} MB in {cache_folder()}, which may take {limit}"

    def _advice(self) -> str:
        device = torch.device(self.device)
        half = advised_half(autocast_dtype(self.precision, device), device)
        options = {  # text -> whether there is anything to gain, and whether a resumed run may change it
            f"--micro-batch {self.plan.micro_batch // 2}": (self.plan.micro_batch > 1, True),
            f"--precision {half}": (half is not None, False),
            "--checkpointing": (not self.checkpointing, True),
            f"--image-size {self.image_size // 2}": (True, False),
            "a smaller --backbone": (True, False),
            "--method decoder-only": (self.method["name"] != "decoder-only", False),
        }
        left = {text: may_change for text, (helps, may_change) in options.items() if helps}
        if not self.resumed:
            return f"Try {_either(list(left))}."
        here = [text for text, may_change in left.items() if may_change]
        first = f"Try {_either(here)}, or start" if here else "Start"
        anew = _either([text for text in left if text not in here])
        return f"{first} a new run in another --out with {anew}."


def _either(options: list[str]) -> str:
    return " or ".join([", ".join(options[:-1]), options[-1]] if len(options) > 1 else options)


def dry_run(config: RunConfig, resume: bool = False) -> DryRun:
    """Check everything that `fit` checks before its first step, and estimate the rest.

    The weights of a preset are neither fetched nor read; those of any other backbone are, as its shape is not
    known without them.

    Args:
        config: the run.
        resume: whether it would go on with the run in `config.out`.

    Raises:
        ConfigError, DataError, WeightsError: as `fit` would.
    """
    if config.backbone == UNET:
        raise ConfigError("--dry-run covers SAM's backbones, not 'unet'. Leave it out.")
    check_launcher_variables()
    record = read_record(config.out) if resume else None
    report = check_dataset(config.data, classes=config.classes, palette=config.palette, record=record)
    report.raise_if_errors()
    dataset = limit_training(report.dataset, config.train_images, config.seed)
    check_metric(config.metric, dataset.classes)
    spec = _spec(config.backbone)
    built = _segmenter_config(config, spec, dataset.classes)
    state = meet()
    dtype = training_dtype(config.precision, state.device)
    plan = make_plan(config, len(dataset.splits["train"]), spec.encoder.embed_dim, state.num_processes)
    slow = slowness(dtype, state.device)
    held = psutil.Process().memory_info().rss
    trained, total = _count(spec, built)
    step = simulate_step(spec, built, plan.micro_batch, dtype, config.checkpointing)
    cached = bytes_kept(len(dataset.splits["train"]), built.image_size, config.keeps_embeddings)
    peak = estimate_peak(step, state.device.type, held, cached, loaded=4 * total)
    height, width = report.statistics.get("largest image", (0, 0))
    native = step.parameters + 4 * len(dataset.classes) * height * width * 4  # logits, softmax, copies
    return DryRun(
        images={split: len(pairs) for split, pairs in dataset.splits.items()},
        class_shares=dataset.shares,
        backbone=config.backbone,
        method=dict(config.method),
        trained_parameters=trained,
        all_parameters=total,
        image_size=built.image_size,
        precision={None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype],
        device=state.device.type,
        plan=plan,
        memory_mib=max(peak, native + (held if state.device.type == "cpu" else 0)) // MIB,
        free_mib=free_bytes(state.device) // MIB,
        step=step,
        checkpointing=config.checkpointing,
        resumed=resume,
        embeddings_mb=_embeddings_mb(config, dataset, built.image_size, spec)
        if config.keeps_embeddings
        else 0,
        remarks=[
            *remarks(config),
            *made_splits(dataset),
            *thin_areas(dataset, built.image_size, built.resize, spec.encoder.patch_size),
        ],
        warnings=[
            *gathered(report.warnings),
            *lost_classes(report.dataset, dataset),
            *blank_masks(config, dataset, report.warnings),
            *([slow] if slow else []),
        ],
    )


def _embeddings_mb(config: RunConfig, dataset: DataSet, image_size: int, spec: SamSpec) -> int:
    """Megabytes of all embeddings in fp32, the widest that an encoder gives them in; 1 at least."""
    forms = 2 if config.augment == "flip" else 1
    images = forms * len(dataset.splits["train"]) + len(dataset.splits["val"])
    cells = (image_size // spec.encoder.patch_size) ** 2
    return -(-4 * images * cells * spec.encoder.out_channels // 10**6)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _spec(backbone: str) -> SamSpec:
    name = backbone.removeprefix("random:")
    return BACKBONES[name] if name in BACKBONES else load_sam(backbone).sam.spec


def _segmenter_config(config: RunConfig, spec: SamSpec, classes: tuple[str, ...]) -> SegmenterConfig:
    return SegmenterConfig.for_sam(
        spec,
        config.backbone,
        classes,
        config.build_method(),
        head=choose_head(config, classes),
        num_masks=config.num_masks,
        image_size=config.image_size,
        resize=config.resize,
    )


def _count(spec: SamSpec, config: SegmenterConfig) -> tuple[dict[str, int], int]:
    with torch.device("meta"):
        model = Segmenter(Sam(spec), config)
    parts = {"encoder": model.encoder, "mask decoder": model.decoder, "head": model.head}
    trained = {
        name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in parts.items()
    }
    return trained, model.count_parameters().total
