"""Pretrain a small SAM from random weights on generated scenes; resumable, CPU-friendly."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from convlora.backbone.initialise import random_sam
from convlora.backbone.presets import SAM_TINY, SamSpec
from convlora.backbone.sam import Sam
from convlora.backbone.weights import save_sam
from convlora.errors import ConfigError, WeightsError
from convlora.inference.device import autocast_dtype
from convlora.pretraining.batches import Batch, BatchStream
from convlora.pretraining.objective import mask_iou, pretraining_loss
from convlora.pretraining.shards import ShardReader
from convlora.pretraining.teacher import Lesson
from convlora.pretraining.textures import TextureBank
from convlora.state_file import read_states, restore_training, training_tensors, write_state


@dataclass(frozen=True)
class PretrainConfig:
    """Options of a pretraining run."""

    minutes: float = 60.0  # wall-clock budget; the schedule follows the share of it that is used up
    seed: int = 0
    lr: float = 1e-3
    weight_decay: float = 0.05
    prompts: int = 6
    small_size: int = 128  # first stage, where a step is cheap
    small_batch: int = 16
    full_batch: int = 6
    full_from: float = 0.6  # share of the budget after which images have the native size
    warmup: float = 0.03
    save_every: float = 120.0  # seconds
    workers: int = 0  # a batch is drawn in a tenth of a step
    teacher: bool = False  # learn an ImageNet network's features beside the masks
    distil_weight: float = 1.0
    photographs: float = 0.25  # crops of photographs for the teacher, as a share of the scenes of a batch


def pretrain(
    shards: Path,
    out: Path,
    config: PretrainConfig,
    spec: SamSpec = SAM_TINY,
    textures: TextureBank | None = None,
    init: Sam | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Path:
    """Train until the budget is used up and write the weights.

    A run that was cut off goes on where its last checkpoint left it: the budget counts training time only.

    Args:
        shards: folder of scenes written by `write_shards`.
        out: run folder; `out/model` gets config.json and model.safetensors.
        config: options.
        spec: shape of the model.
        textures: photographs for the teacher beside the scenes.
        init: weights to start from, of that shape; random ones if None.
        clock: seconds, of the budget; `time.process_time` counts what the run computes itself, whatever else
            the machine has to do.

    Returns:
        The folder with the weights.

    Raises:
        ConfigError: the shape does not fit the scenes or the crops, see `check_shape`.
        MissingExtraError: a teacher is asked for and its packages are not installed.
    """
    check_shape(spec, "The backbone", config.small_size)
    out.mkdir(parents=True, exist_ok=True)
    reader = ShardReader(shards)
    draw = partial(_batches, reader, config, spec, textures)
    lesson = Lesson(spec, draw(stage=0, step=0)) if config.teacher else None
    run = _Run(random_sam(spec, config.seed) if init is None else init, config, out, lesson, clock)
    run.resume()
    for stage in (0, 1):
        if run.progress < (config.full_from if stage == 0 else 1.0):
            run.train_stage(draw(stage=stage, step=run.step), stage)
    save_sam(run.sam, out / "model", torch.float16)
    return out / "model"


def check_shape(spec: SamSpec, name: str, small_size: int = PretrainConfig.small_size) -> None:
    """Check that a backbone can learn from the scenes.

    Args:
        spec: its shape.
        name: how the message calls it.
        small_size: pixels a side of the first stage's crops.

    Raises:
        ConfigError: it is larger than the scenes, or its patches do not divide the crops and the masks.
    """
    image_size, patch = spec.encoder.image_size, spec.encoder.patch_size
    scenes = SAM_TINY.encoder.image_size
    if image_size > scenes:
        raise ConfigError(
            f"{name} works on images of {image_size} px; the scenes have {scenes} px. "
            "Give sam-tiny, or a backbone of that size or smaller."
        )
    if patch % 4 or small_size % patch:
        raise ConfigError(
            f"{name} has patches of {patch} px. Pretraining needs patches that are a multiple of 4 px, as "
            "the decoder's masks have 4 cells a patch and side, and that divide the first crops' "
            f"{small_size} px (4, 8, 16, 32, ...). Give another backbone."
        )


def _batches(
    reader: ShardReader,
    config: PretrainConfig,
    spec: SamSpec,
    textures: TextureBank | None,
    stage: int,
    step: int,
) -> Iterator[Batch]:
    size, batch = (
        (config.small_size, config.small_batch)
        if stage == 0
        else (spec.encoder.image_size, config.full_batch)
    )
    extra = round(config.photographs * batch) if config.teacher else 0
    seed = config.seed * 1_000_003 + step
    cell = spec.encoder.patch_size // 4
    stream = BatchStream(reader, size, batch, config.prompts, seed, textures, extra, cell)
    return iter(
        torch.utils.data.DataLoader(
            stream, batch_size=None, num_workers=config.workers, prefetch_factor=4 if config.workers else None
        )
    )


class _Run:
    """State of a run: model, optimiser, clock, log."""

    def __init__(
        self,
        sam: Sam,
        config: PretrainConfig,
        out: Path,
        lesson: Lesson | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sam, self.config, self.out, self.lesson, self.clock = sam, config, out, lesson, clock
        self.trained = dict(sam.named_parameters())
        if lesson is not None:
            self.trained |= {f"lesson.{name}": p for name, p in lesson.head.named_parameters()}
        decay = [p for p in self.trained.values() if p.ndim > 1]
        plain = [p for p in self.trained.values() if p.ndim <= 1]
        groups = [
            {"params": decay, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.98), fused=True)
        self.dtype = autocast_dtype("auto", torch.device("cpu"))  # emulated, bf16 takes ten times fp32's time
        self.step, self.seconds = 0, 0.0

    @property
    def progress(self) -> float:
        """Share of the budget used up."""
        return self.seconds / (60 * self.config.minutes)

    def train_stage(self, batches: Iterator[Batch], stage: int) -> None:
        """Train until the stage's share of the budget is used up."""
        end = self.config.full_from if stage == 0 else 1.0
        saved, tally = time.monotonic(), _Tally()
        while self.progress < end:
            start = self.clock()
            tally.add(self._train_step(next(batches)))
            self.seconds += self.clock() - start
            self.step += 1
            if self.step % 50 == 0:
                self._log(tally)
                tally = _Tally()
            if time.monotonic() - saved > self.config.save_every:
                self.save()
                saved = time.monotonic()
        self.save()

    def _train_step(self, batch: Batch) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        with torch.autocast("cpu", self.dtype, enabled=self.dtype is not None):
            embedding = self.sam.image_encoder(batch.image)
            logits, iou = _predict(self.sam, embedding, batch)
            taught = None if self.lesson is None else self.lesson.loss(embedding, batch.image)
        balance = max(0.0, 1 - self.progress / 0.5)
        loss = pretraining_loss(logits, iou, batch.target, balance)
        values = {"loss": loss.item(), "images": float(len(batch.image))}
        if taught is not None:
            values["distillation"] = taught.item()
            loss = loss + self.config.distil_weight * taught
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimizer.step()
        with torch.no_grad():
            single = mask_iou(logits[:, :1], batch.target).mean()
        return values | {"iou": single.item()}

    def _learning_rate(self) -> float:
        rise = min(1.0, self.progress / self.config.warmup)
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress)))
        return self.config.lr * rise * max(fall, 0.01)

    def _log(self, tally: "_Tally") -> None:
        row = {"step": self.step, "progress": round(self.progress, 4), "seconds": round(self.seconds, 1)}
        row |= {name: round(value, 4) for name, value in tally.means().items()}
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)

    def save(self) -> None:
        """Write the state and the model, each whole or not at all.

        Raises:
            WeightsError: the disk is full or cannot be written; the last state is kept.
        """
        tensors = training_tensors(self.trained, self.optimizer)
        tensors |= {f"buffer/{name}": buffer for name, buffer in self.sam.named_buffers()}
        progress = {"step": self.step, "seconds": self.seconds, "config": asdict(self.config)}
        write_state(self.out, tensors, {"progress": json.dumps(progress)})
        save_sam(self.sam, self.out / "model", torch.float16)

    def resume(self) -> None:
        """Go on from the newest whole state in the run folder, if there is one.

        Raises:
            WeightsError: all states are damaged, or belong to another model.
        """
        states = list(read_states(self.out))
        for saved in states:
            if saved.damage:
                print(f"warning: {saved.damage}", flush=True)
                continue
            restore_training(self.trained, self.optimizer, saved)
            for name, buffer in self.sam.named_buffers():
                buffer.copy_(saved.tensors[f"buffer/{name}"])
            progress = json.loads(saved.header["progress"])
            self.step, self.seconds = progress["step"], progress["seconds"]
            return
        if states:
            raise WeightsError(
                f"No state in {self.out} is whole. To pretrain anew: rm {self.out}/state*.safetensors"
            )


def _predict(sam: Sam, embedding: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """All masks of all prompts, the single one first: (N, 1 + M, h, w) and (N, 1 + M)."""
    size = (batch.image.shape[-2], batch.image.shape[-1])
    labels = None if batch.points is None else torch.ones(batch.points.shape[:-1], dtype=torch.long)
    prompts = batch.boxes if batch.points is None else batch.points
    assert prompts is not None
    logits, iou = sam.prompted(embedding[: len(prompts)], size, batch.points, labels, batch.boxes)
    return logits.flatten(0, 1), iou.flatten(0, 1)


class _Tally:
    """Running means since the last line of the log."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count, self.start = 0, time.monotonic()

    def add(self, values: dict[str, float]) -> None:
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        images = self.sums.pop("images", 0.0)
        means = {name: total / self.count for name, total in self.sums.items()}
        return means | {"images_per_second": images / (time.monotonic() - self.start)}
