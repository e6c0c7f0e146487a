"""The training loop: accumulate, clip, step, validate, keep the best. Thin, on accelerate."""

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from convlora.training.objective import Objective
from convlora.training.optimizer import linear_decay
from convlora.training.plan import Plan
from convlora.training.report import Reporter


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

    def run(
        self,
        loader: DataLoader[dict[str, Tensor]],
        after_step: Callable[[int], bool],
    ) -> None:
        """Train to the end of the plan, or until `after_step` says to stop.

        Args:
            loader: micro-batches from step `done` on: 'image', 'mask' and 'key', int64 (b,), on the CPU.
            after_step: called with the number of steps done; True stops the run.
        """
        batches = iter(loader)
        while self.done < self.plan.steps:
            loss = self._step(batches)
            self.done += 1
            lr = self.optimizer.param_groups[0]["lr"]
            self.reporter.step(self.done, loss, lr, self.plan.batch_size)
            if after_step(self.done):
                break

    def _step(self, batches: Iterator[dict[str, Tensor]]) -> float:
        self.model.train()
        factor = linear_decay(self.done, self.plan.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.lr * factor
        total = torch.zeros((), device=self.accelerator.device)
        for micro in range(self.plan.micro_batches):
            last = micro == self.plan.micro_batches - 1
            synchronise = contextlib.nullcontext() if last else self.accelerator.no_sync(self.model)
            with synchronise:
                total += self._accumulate(next(batches))
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self._checked(total.item())

    def _accumulate(self, batch: dict[str, Tensor]) -> Tensor:
        device, keys = self.accelerator.device, batch["key"].tolist()
        output = self.model(batch["image"].to(device, non_blocking=True), keys)
        loss = self.objective(output, batch["mask"].to(device, non_blocking=True), keys)
        loss = loss / self.plan.micro_batches
        self.accelerator.backward(loss)
        return loss.detach()

    def _checked(self, loss: float) -> float:
        if not math.isfinite(loss):
            self.reporter.say(
                f"step {self.done + 1}: the loss is {loss}. If this goes on, lower --lr or use "
                "--precision fp32."
            )
        return loss
