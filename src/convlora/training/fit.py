"""One training run from its configuration to the run folder."""

import json
import time
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env, set_seed
from torch import Tensor

from convlora.adapters import build_method
from convlora.backbone.weights import load_sam
from convlora.config import RunConfig
from convlora.data.augment import AugmentConfig
from convlora.data.check import check_dataset
from convlora.data.dataset import SegmentationDataset
from convlora.data.layout import DataSet
from convlora.errors import ConfigError
from convlora.inference.predictor import autocast_dtype
from convlora.model import Segmenter, default_head
from convlora.training.environment import describe_environment
from convlora.training.interrupts import on_interrupt
from convlora.training.loop import Loop
from convlora.training.notes import notes
from convlora.training.objective import make_objective, resolve_loss
from convlora.training.optimizer import make_optimizer
from convlora.training.plan import make_plan
from convlora.training.report import Reporter
from convlora.training.resume import Progress, load_state, save_state, trim_log
from convlora.training.stream import make_loader
from convlora.training.validation import Validation, check_metric

_SAVE_SECONDS = 300.0
_ACCELERATE = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


def fit(config: RunConfig, resume: bool = False) -> dict[str, Any]:
    """Train, and keep the model that is best on the validation split.

    Writes config.yaml, environment.json, split.json, metrics.jsonl, metrics.json, `best/`, `last/`,
    `previews/` and the state to resume from into `config.out`. Ctrl-C ends the run after the step at work,
    with its state saved.

    Args:
        config: the run.
        resume: go on from the state in `config.out`, to the same weights as if never interrupted.

    Returns:
        Validation scores of the best model, with 'step'.

    Raises:
        ConfigError, DataError, WeightsError: before any training, with what to change.
    """
    report = check_dataset(config.data, classes=config.classes)
    report.raise_if_errors()
    dataset = report.dataset
    check_metric(config.metric, dataset.classes)
    AcceleratorState._reset_state()  # else a second run in this process is bound to the first one's precision
    # without cpu=True, processes launched on a machine without a GPU would each train alone
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    precision = _ACCELERATE[autocast_dtype(config.precision, PartialState(cpu=cpu).device)]
    accelerator = Accelerator(cpu=cpu, mixed_precision=precision)
    set_seed(config.seed, device_specific=True)
    warnings = [*map(str, report.warnings), *notes(config, dataset.classes)]
    run = _Run(config, dataset, accelerator, warnings)
    return run.train(resume)


class _Run:
    """Everything that one call of `fit` holds."""

    def __init__(
        self, config: RunConfig, dataset: DataSet, accelerator: Accelerator, warnings: list[str]
    ) -> None:
        self.config, self.dataset, self.accelerator = config, dataset, accelerator
        self.segmenter = _build(config, dataset)
        embed_dim = self.segmenter.encoder.spec.embed_dim
        self.plan = make_plan(
            config, len(dataset.splits["train"]), embed_dim, processes=accelerator.num_processes
        )
        self.progress = Progress()
        self.interrupted = False
        self.saved_at = time.monotonic()
        self.warnings = warnings

    def train(self, resume: bool) -> dict[str, Any]:
        config, accelerator = self.config, self.accelerator
        if accelerator.is_main_process and not resume:
            self._write_record()
        optimizer = make_optimizer(self.segmenter, self.plan.lr, config.weight_decay)
        state = load_state(config.out, self.segmenter, optimizer) if resume else None
        self.optimizer = optimizer
        model, optimizer = accelerator.prepare(self.segmenter, optimizer)
        objective = make_objective(self.segmenter, config.loss)
        with Reporter(config.out, self.plan.steps, config.metric, accelerator.is_main_process) as reporter:
            self.reporter = reporter
            self.validation = Validation(config, self.dataset, self.segmenter, accelerator, reporter)
            self._introduce()
            loop = Loop(accelerator, model, optimizer, objective, self.plan, config.clip, reporter)
            rng = self._go_on(state) if state else None
            loop.done = self.progress.step
            loader = make_loader(
                self._images(), self.plan, config.seed, config.workers, accelerator.process_index, loop.done
            )
            with on_interrupt(self._interrupt):
                loop.run(loader, self._after_step, rng)
        accelerator.wait_for_everyone()
        accelerator.end_training()
        return self.progress.best

    def _go_on(self, state: tuple[Progress, Tensor]) -> Tensor:
        """Take up a saved state; returns this process's random state."""
        self.progress, rng = state
        if self.progress.finished:
            raise ConfigError(f"The run in {self.config.out} is finished; there is nothing to resume.")
        if len(rng) != self.accelerator.num_processes:
            raise ConfigError(
                f"The run in {self.config.out} was made by {len(rng)} processes; resume it with as many."
            )
        trim_log(self.config.out / "metrics.jsonl", self.progress.step)
        self.reporter.say(f"resuming after step {self.progress.step}")
        return rng[self.accelerator.process_index]

    def _after_step(self, step: int) -> bool:
        """Validate and save when due; True ends the run."""
        last = step == self.plan.steps
        self.progress.step = step
        due = last or step % self.plan.eval_every == 0
        stop = self.validation.run(self.progress) if due else False
        self.progress.finished = last or stop
        if due or self.interrupted or time.monotonic() - self.saved_at > _SAVE_SECONDS:
            self._save_progress()
        if self.interrupted and not self.progress.finished:
            raise KeyboardInterrupt
        return stop

    def _save_progress(self) -> None:
        rng = torch.get_rng_state()[None].to(self.accelerator.device)
        if self.accelerator.num_processes > 1:
            rng = self.accelerator.gather(rng)
        if self.accelerator.is_main_process:
            save_state(self.config.out, self.progress, self.segmenter, self.optimizer, rng.cpu())
        self.saved_at = time.monotonic()

    def _interrupt(self) -> None:
        self.interrupted = True
        self.reporter.say(
            "Stopping after this step. Go on with: "
            f"convlora train {self.config.data} --out {self.config.out} --resume"
        )

    def _images(self) -> SegmentationDataset:
        config = self.segmenter.config
        return SegmentationDataset(
            self.dataset.splits["train"],
            self.dataset.encoding,
            image_size=config.image_size,
            resize=config.resize,
            augment=AugmentConfig.preset(self.config.augment),
            seed=self.config.seed,
        )

    def _write_record(self) -> None:
        out = self.config.out
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text(self.config.to_yaml())
        environment = describe_environment(self.accelerator.device, self.accelerator.mixed_precision)
        (out / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")
        stems = {split: [pair.stem for pair in pairs] for split, pairs in self.dataset.splits.items()}
        (out / "split.json").write_text(json.dumps(stems, indent=2) + "\n")

    def _introduce(self) -> None:
        config, trained = self.segmenter.config, self.segmenter.count_parameters()
        sizes = ", ".join(f"{len(pairs)} {split}" for split, pairs in self.dataset.splits.items())
        for line in self.warnings:
            self.reporter.say(f"warning: {line}")
        self.reporter.say(
            f"{config.method} on {config.backbone}: {trained.trainable:,} of {trained.total:,} parameters "
            f"trained ({100 * trained.share:.2f} %)\n"
            f"images: {sizes}; classes: {', '.join(config.classes)}\n"
            f"{self.plan.steps} steps of {self.plan.batch_size} images at {config.image_size} px, "
            f"{self.accelerator.mixed_precision.replace('no', 'fp32')} on {self.accelerator.device}, "
            f"learning rate {self.plan.lr:g}"
        )


def _build(config: RunConfig, dataset: DataSet) -> Segmenter:
    options = dict(config.method)
    name = options.pop("name")
    head = default_head(len(dataset.classes))
    resolve_loss(config.loss, head if head == "binary" else config.multiclass_head)
    return Segmenter.from_backbone(
        load_sam(config.backbone),
        dataset.classes,
        build_method(name, options),
        head=head if head == "binary" else config.multiclass_head,
        num_masks=config.num_masks,
        image_size=config.image_size,
        resize=config.resize,
        seed=config.seed,
    )
