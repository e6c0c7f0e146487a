"""The training loop: accumulate, clip, step, validate, keep the best. Thin, on accelerate."""

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from convlora.adapters import forget_auxiliary_loss
from convlora.errors import ConfigError
from convlora.inference.device import advised_half, autocast_dtype
from convlora.inference.predictor import is_out_of_memory
from convlora.training.objective import Objective
from convlora.training.optimizer import linear_decay
from convlora.training.out_of_memory import cannot_halve, release_memory
from convlora.training.plan import Plan
from convlora.training.report import Reporter
from convlora.transfer import need_not_wait

_MOST_LEFT_OUT = 20  # steps in a row; fp16's scale halves at each, from 65,536


class Loop:
    """One run's state between steps.

    Args:
        accelerator: device, precision, processes.
        model: prepared by the accelerator.
        optimizer: prepared by the accelerator.
        objective: loss of an output, its target and the keys of its images.
        plan: numbers of the run.
        clip: largest norm of the gradient.
        reporter: is told about every step.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        plan: Plan,
        clip: float,
        reporter: Reporter,
    ) -> None:
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.objective, self.plan, self.clip, self.reporter = objective, plan, clip, reporter
        self.done = 0  # steps
        self.splits = 1  # parts that each micro-batch is cut into, because memory ran out
        self.left_out = 0  # steps in a row

    def run(
        self,
        loader: Iterable[dict[str, Tensor]],
        after_step: Callable[[int], bool],
    ) -> None:
        """Train to the end of the plan, or until `after_step` says to stop.

        Args:
            loader: micro-batches from step `done` on: 'image' or 'embedding' (see `Segmenter.forward`),
                'mask' and 'key', int64 (b,), on the CPU.
            after_step: called with the number of steps done; True stops the run.

        Raises:
            ConfigError: memory runs out with the smallest part, or no step changes the model any more.
        """
        batches = iter(loader)
        while self.done < self.plan.steps:
            start = time.monotonic()
            loss = self._step(batches)
            seconds = time.monotonic() - start
            self.done += 1
            lr = self.optimizer.param_groups[0]["lr"]
            self.reporter.step(self.done, loss, lr, self.plan.batch_size, seconds)
            if after_step(self.done):
                break

    def _step(self, batches: Iterator[dict[str, Tensor]]) -> float:
        self.model.train()
        factor = linear_decay(self.done, self.plan.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.lr * factor
        total = self._gradients([next(batches) for _ in range(self.plan.micro_batches)])
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
        if self.accelerator.num_processes > 1:
            total = self.accelerator.reduce(total, "mean")
        loss, length = torch.stack([total, norm.to(total)]).tolist()  # the step's one wait for the device
        finite = math.isfinite(length)
        if finite or self.accelerator.scaler is not None:  # the scaler leaves it out itself, and adapts
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.left_out = 0 if finite else self._left_out(loss)
        return loss

    def _left_out(self, loss: float) -> int:
        """Say that a step was left out, as one would make all weights NaN for good; counts those in a row."""
        row = self.left_out + 1
        advice = "a lower --lr or --precision fp32"
        if row == _MOST_LEFT_OUT:
            raise ConfigError(
                f"No gradient of the last {row} steps was finite (the loss is {loss}), so nothing was learnt "
                f"from them. Start a new run with {advice}. What this one has saved is kept."
            )
        self.reporter.say(
            f"step {self.done + 1}: the gradient is not finite (the loss is {loss}), so the step is left "
            f"out. If this goes on, use {advice}."
        )
        return row

    def _gradients(self, batches: list[dict[str, Tensor]]) -> Tensor:
        """Gradients of one step, in smaller parts where memory runs out; returns the loss."""
        while True:
            try:
                return self._accumulate_all(batches)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error)
            # outside of the handler, which holds the failed step's tensors
            self._halve(reason)

    def _halve(self, reason: str) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        forget_auxiliary_loss(self.model)
        release_memory()
        images, device = self._images_at_once(), self.accelerator.device
        if images == 1 or self.accelerator.num_processes > 1:
            dtype = autocast_dtype(self.accelerator.mixed_precision.replace("no", "fp32"), device)
            raise cannot_halve(images, self.accelerator.num_processes, reason, advised_half(dtype, device))
        self.splits *= 2
        now = self._images_at_once()
        self.reporter.say(
            f"step {self.done + 1}: out of memory with {images} images at once; going on with {now}, "
            f"still {self.plan.batch_size} a step"
        )
        self.reporter.record({"step": self.done + 1, "micro_batch": now})

    def _images_at_once(self) -> int:
        return -(-self.plan.micro_batch // self.splits)

    def _accumulate_all(self, batches: list[dict[str, Tensor]]) -> Tensor:
        total = torch.zeros((), device=self.accelerator.device)
        size = self._images_at_once()
        parts = [part for batch in batches for part in cut(batch, size)]
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                total += self._accumulate(part)
        return total

    def _accumulate(self, batch: dict[str, Tensor]) -> Tensor:
        keys = batch["key"].tolist()
        if "embedding" in batch:
            output = self.model(self._on_device(batch["embedding"]), keys, embedded=True)
        else:
            output = self.model(self._on_device(batch["image"]), keys)
        target = self._on_device(batch["mask"])
        if target.dtype == torch.uint8:  # an eighth of the bytes, up to here
            target = target.long()
        loss = self.objective(output, target, keys)
        loss = loss * len(keys) / (self.plan.micro_batches * self.plan.micro_batch)
        self.accelerator.backward(loss)
        return loss.detach()

    def _on_device(self, tensor: Tensor) -> Tensor:
        device = self.accelerator.device
        return tensor.to(device, non_blocking=need_not_wait(device))


def cut(batch: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    """Cut a batch into parts of at most `size` images, in their order."""
    pieces = {name: tensor.split(size) for name, tensor in batch.items()}
    return [dict(zip(pieces, part, strict=True)) for part in zip(*pieces.values(), strict=True)]
