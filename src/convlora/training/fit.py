"""One training run from its configuration to the run folder."""

import json
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import parse_flag_from_env, set_seed

from convlora import run_files
from convlora._version import __version__
from convlora.backbone.weights import load_sam
from convlora.config import RunConfig
from convlora.data.augment import AugmentConfig
from convlora.data.check import check_dataset
from convlora.data.dataset import SegmentationDataset
from convlora.data.gather import gathered
from convlora.data.layout import DataSet
from convlora.data.progress import show_progress
from convlora.data.splits import limit_training, lost_classes, read_record, record_splits
from convlora.embedding_store import EmbeddingStore, cache_folder, cache_limit
from convlora.errors import ConfigError
from convlora.frozen import hold_frozen_in
from convlora.inference.device import slowness, training_dtype
from convlora.model import SegmentationModel, Segmenter, SegmenterConfig
from convlora.output import make_folder, write_text
from convlora.settings import as_typed
from convlora.training.changes import changed_options, record_changes, tell_changes
from convlora.training.embeddings import EmbeddedImages, EmbeddedPredictor, Embeddings
from convlora.training.environment import describe_environment, read_command
from convlora.training.interrupts import on_interrupt
from convlora.training.lock import locked
from convlora.training.loop import Loop
from convlora.training.notes import blank_masks, made_splits, notes, remarks, thin_areas
from convlora.training.objective import choose_head, make_objective
from convlora.training.optimizer import keep_counters, make_optimizer
from convlora.training.out_of_memory import keep_off_main_memory
from convlora.training.plan import make_plan
from convlora.training.prefetch import prefetched
from convlora.training.prepare import prepare_embeddings
from convlora.training.processes import (
    check_agreement,
    check_launch,
    check_launcher_variables,
    disconnect,
    meet,
)
from convlora.training.report import Reporter
from convlora.training.resume import Progress, State, check_made_with, load_state, save_state, trim_log
from convlora.training.stream import Examples, make_loader
from convlora.training.validation import Validation, check_metric
from convlora.unet import UNET, Unet, unet_size

_SAVE_SECONDS = 300.0
_ACCELERATE = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


def fit(config: RunConfig, resume: bool = False, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, and keep the model that is best on the validation split.

    Writes config.yaml, environment.json, split.json, metrics.jsonl, metrics.json, `best/`, `last/`,
    `previews/` and the state to resume from into `config.out`. Ctrl-C ends the run after the step at work,
    with its state saved.

    Args:
        config: the run.
        resume: go on from the state in `config.out`, to the same weights as if never interrupted. Of the
            recorded configuration the keys of `MAY_CHANGE` may be others; config.yaml then gets these.
        command: the words that started it, for the record, if it was a command.

    Returns:
        Validation scores of the best model, with 'step'.

    Raises:
        ConfigError, DataError, WeightsError: before any training, with what to change.
    """
    _refuse_sharding()
    check_launcher_variables()
    cache_limit()  # a mistake in it shows before the run folder is made
    record = read_record(config.out) if resume else None
    report = check_dataset(
        config.data, classes=config.classes, palette=config.palette, record=record, progress=show_progress
    )
    report.raise_if_errors()
    dataset = limit_training(report.dataset, config.train_images, config.seed)
    check_metric(config.metric, dataset.classes)
    AcceleratorState._reset_state()  # else a second run in this process is bound to the first one's precision
    device = meet().device
    dtype = training_dtype(config.precision, device)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=_ACCELERATE[dtype])
    check_launch(accelerator)
    keep_off_main_memory(accelerator.device)
    set_seed(config.seed, device_specific=True)
    slow = slowness(dtype, accelerator.device)
    lost = lost_classes(report.dataset, dataset)
    told = [*notes(config, dataset.classes, report.named), *blank_masks(config, dataset, report.warnings)]
    warnings = [*gathered(report.warnings), *lost, *told, *([slow] if slow else [])]
    best = _Run(config, dataset, accelerator, warnings, command).train(resume)
    disconnect(accelerator)
    return best


class _Run:
    """Everything that one call of `fit` holds."""

    def __init__(
        self,
        config: RunConfig,
        dataset: DataSet,
        accelerator: Accelerator,
        warnings: list[str],
        command: Sequence[str] | None,
    ) -> None:
        self.config, self.dataset, self.accelerator = config, dataset, accelerator
        self.command = command
        self.segmenter = _build(config, dataset)
        hold_frozen_in(self.segmenter, training_dtype(config.precision, accelerator.device))
        embed_dim = self.segmenter.embed_dim
        self.plan = make_plan(
            config, len(dataset.splits["train"]), embed_dim, processes=accelerator.num_processes
        )
        self.progress = Progress()
        self.interrupted = False
        self.saved_at = time.monotonic()
        self.warnings = warnings

    def train(self, resume: bool) -> dict[str, Any]:
        if not self.accelerator.is_main_process:
            return self._train(resume)
        make_folder(self.config.out)
        with locked(self.config.out):
            if not resume or not (self.config.out / run_files.RECORD).exists():
                self._write_record()
            return self._train(resume)

    def _train(self, resume: bool) -> dict[str, Any]:
        config, accelerator = self.config, self.accelerator
        fused = accelerator.device.type == "cpu"
        optimizer = make_optimizer(self.segmenter, self.plan.lr, config.weight_decay, fused)
        state = load_state(config.out, self.segmenter, optimizer) if resume else None
        # before the processes meet: after that, the first one writes config.yaml
        self.changed = changed_options(config) if resume else {}
        self._check_agreement(state)
        self.optimizer = optimizer
        model, optimizer = accelerator.prepare(self.segmenter, optimizer)
        keep_counters(self.optimizer)
        objective = make_objective(self.segmenter, config.loss)
        with Reporter(config.out, self.plan.steps, config.metric, accelerator.is_main_process) as reporter:
            self.reporter = reporter
            embeddings = self._embeddings()
            predictor = partial(EmbeddedPredictor, embeddings) if embeddings else None
            command = read_command(config.out)
            self.validation = Validation(
                config, self.dataset, self.segmenter, accelerator, reporter, command, predictor
            )
            self._introduce()
            loop = Loop(accelerator, model, optimizer, objective, self.plan, config.clip, reporter)
            if resume:
                self._go_on(state or State(self.progress, self._made_with()))
            loop.done, loop.splits = self.progress.step, self.progress.splits
            self.loop = loop
            images, workers = self._images(embeddings)
            pin = accelerator.device.type == "cuda"
            loader = make_loader(
                images, self.plan, config.seed, workers, accelerator.process_index, loop.done, pin
            )
            # the CPU's own arithmetic would be slowed down; embeddings may be computed while they are read
            ahead = accelerator.device.type != "cpu" and embeddings is None and not workers
            reporter.begin()
            with on_interrupt(self._interrupt):
                loop.run(prefetched(loader) if ahead else loader, self._after_step)
        return self.progress.best

    def _check_agreement(self, state: State | None) -> None:
        check_agreement(
            self.accelerator,
            configuration=self.config.to_yaml(),
            data=self.dataset.fingerprint,
            backbone=self.segmenter.config.backbone_fingerprint,
            saved_state=str(state.progress if state else None),
        )

    def _go_on(self, state: State) -> None:
        """Take up a saved state, with any number of processes: nothing random hangs on them."""
        self.progress = state.progress
        for warning in check_made_with(state.made_with, self._made_with(), self.config.out):
            self.reporter.say(f"warning: {warning}")
        if state.skipped:
            self.reporter.say(
                f"warning: {state.skipped}. Taking the one before it; the end will be the same."
            )
        if self.progress.finished:
            raise ConfigError(f"The run in {self.config.out} is finished; there is nothing to resume.")
        if self.accelerator.scaler is not None and self.progress.scaler:
            self.accelerator.scaler.load_state_dict(self.progress.scaler)
        if self.accelerator.is_main_process:
            trim_log(self.config.out / run_files.LOG, self.progress.step)
            record_changes(self.changed, self.config.out)
        self._tell_changes()
        self.reporter.say(f"resuming after step {self.progress.step}")

    def _tell_changes(self) -> None:
        for line in tell_changes(self.changed):
            self.reporter.say(line)
        if self.changed:
            values = {key: new for key, (_, new) in self.changed.items()}
            self.reporter.record({"step": self.progress.step, **values})
        if "micro_batch" in self.changed:
            self.progress.splits = 1  # of the one before, where memory ran out

    def _after_step(self, step: int) -> bool:
        """Validate and save when due; True ends the run."""
        last = step == self.plan.steps
        self.progress.step, self.progress.splits = step, self.loop.splits
        if self.accelerator.scaler is not None:
            self.progress.scaler = self.accelerator.scaler.state_dict()
        due = last or step % self.plan.eval_every == 0
        stop = self.validation.run(self.progress) if due else False
        self.progress.finished = last or stop
        # not into the flag, which a signal may set while the processes wait for each other
        interrupted = self._any_process(self.interrupted)
        if due or interrupted or time.monotonic() - self.saved_at > _SAVE_SECONDS:
            self._save_progress()
        if interrupted and not self.progress.finished:
            raise KeyboardInterrupt
        return stop

    def _save_progress(self) -> None:
        if self.accelerator.is_main_process:
            save_state(self.config.out, self.progress, self.segmenter, self.optimizer, self._made_with())
        self.saved_at = time.monotonic()

    def _made_with(self) -> dict[str, str]:
        return {
            "data": self.dataset.fingerprint,
            "backbone": self.segmenter.config.backbone_fingerprint,
            "torch": torch.__version__,
            "convlora": __version__,
        }

    def _interrupt(self) -> None:
        self.interrupted = True
        command = ["convlora", "train", str(self.config.data), "--out", str(self.config.out), "--resume"]
        self.reporter.say(f"Stopping after this step. Go on with: {as_typed(command)}")

    def _any_process(self, flag: bool) -> bool:
        """Whether the flag is up in any process: a signal reaches them at different steps."""
        if self.accelerator.num_processes == 1:
            return flag
        total = self.accelerator.reduce(torch.tensor(float(flag), device=self.accelerator.device), "sum")
        return bool(total > 0)

    def _embeddings(self) -> Embeddings | None:
        """What keeps the embeddings, if this run does."""
        if not (self.config.keeps_embeddings and isinstance(self.segmenter, Segmenter)):
            return None
        store = EmbeddingStore(cache_folder(), cache_limit(), self.reporter.say)
        return Embeddings(self.segmenter, self.accelerator.device, self.config.precision, store)

    def _images(self, embeddings: Embeddings | None) -> tuple[Examples, int]:
        """The training images, with all embeddings computed, and the processes that read them."""
        images = self._pictures()
        if embeddings is None:
            return images, self.config.workers
        embedded, seed, say = EmbeddedImages(images, embeddings), self.config.seed, self.reporter.say
        pairs = self.validation.mine()
        prepare_embeddings(embedded, pairs, self.plan, seed, self.loop.done, self.accelerator, say)
        return embedded, 0  # a missing embedding is computed where the model is

    def _pictures(self) -> SegmentationDataset:
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
        environment = describe_environment(
            self.accelerator.device, self.accelerator.mixed_precision, self.command
        )
        write_text(out / run_files.ENVIRONMENT, json.dumps(environment, indent=2) + "\n")
        write_text(out / run_files.CONFIG, self.config.located().to_yaml())
        write_text(out / run_files.RECORD, record_splits(self.dataset))

    def _thin_areas(self) -> list[str]:
        if not (self.accelerator.is_main_process and isinstance(self.segmenter, Segmenter)):
            return []
        config = self.segmenter.config
        patch = self.segmenter.encoder.spec.patch_size
        return thin_areas(self.dataset, config.image_size, config.resize, patch)

    def _where(self) -> str:
        """Device and processes: whoever uses a launcher sees whether it started as many as meant."""
        count = self.accelerator.num_processes
        return f"{self.accelerator.device.type}, {count} process{'es' if count > 1 else ''}"

    def _introduce(self) -> None:
        config, trained = self.segmenter.config, self.segmenter.count_parameters()
        sizes = ", ".join(f"{len(pairs)} {split}" for split, pairs in self.dataset.splits.items())
        for line in self.warnings:
            self.reporter.say(f"warning: {line}")
        for line in [*remarks(self.config), *made_splits(self.dataset), *self._thin_areas()]:
            self.reporter.say(f"note: {line}")
        self.reporter.say(
            f"{config.method} on {config.backbone}: {trained.trainable:,} of {trained.total:,} parameters "
            f"trained ({100 * trained.share:.2f} %)\n"
            f"images: {sizes}; classes: {', '.join(config.classes)}\n"
            f"{self.plan.steps} steps of {self.plan.batch_size} images at {config.image_size} px, "
            f"{self.accelerator.mixed_precision.replace('no', 'fp32')} on {self._where()}, "
            f"learning rate {self.plan.lr:g}"
        )


def _build(config: RunConfig, dataset: DataSet) -> SegmentationModel:
    head = choose_head(config, dataset.classes)
    if config.backbone == UNET:
        if config.checkpointing:
            raise ConfigError(
                "checkpointing is for SAM's encoder; the backbone 'unet' has none. Leave it out."
            )
        options = {key: value for key, value in config.method.items() if key != "name"}
        built = SegmenterConfig(
            UNET,
            dataset.classes,
            config.method["name"],
            options,
            head,
            image_size=unet_size(config.image_size),
            resize=config.resize,
        )
        return Unet.from_scratch(built, config.seed)
    segmenter = Segmenter.from_backbone(
        load_sam(config.backbone),
        dataset.classes,
        config.build_method(),
        head=head,
        num_masks=config.num_masks,
        image_size=config.image_size,
        resize=config.resize,
        seed=config.seed,
    )
    segmenter.encoder.set_recompute(config.checkpointing)
    return segmenter


def _refuse_sharding() -> None:
    """Sharded parameters would be saved in pieces; on CPUs, accelerate silently does not shard at all."""
    for name in ("FSDP", "DEEPSPEED"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            raise ConfigError(
                f"The launcher asks for {name}, which convlora does not support: only adapters and the mask "
                "decoder train, so there is next to nothing to shard. Launch with --multi_gpu (DDP) instead; "
                "where memory is short, lower --micro-batch or --image-size, or leave --precision at auto."
            )
