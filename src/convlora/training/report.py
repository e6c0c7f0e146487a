"""What a run tells: a progress bar on a terminal, plain lines elsewhere, metrics.jsonl, previews."""

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from convlora.output import write_errors
from convlora.run_files import LOG

_LINE_EVERY = 20.0  # seconds between plain lines


class Reporter:
    """Progress of the steps of one run.

    Args:
        out: run folder, where metrics.jsonl is written.
        steps: steps of the whole run.
        metric: name of the validation metric that is shown.
        enabled: False on all processes but the first.
    """

    def __init__(self, out: Path, steps: int, metric: str, enabled: bool = True) -> None:
        self.file, self.steps, self.metric, self.enabled = out / LOG, steps, metric, enabled
        self.console = Console(quiet=not enabled)
        self.bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn(
                "loss {task.fields[loss]}  {task.fields[metric]}  {task.fields[speed]} images/s", markup=False
            ),
            TimeRemainingColumn(),
            console=self.console,
            disable=not (enabled and self.console.is_terminal),
        )
        self.task = self.bar.add_task("", total=steps, loss="-", metric="", speed="-")
        self.images, self.start, self.last_line = 0, time.monotonic(), 0.0

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def begin(self) -> None:
        """The steps begin now: what came before does not count as their time."""
        self.start = time.monotonic()

    def step(self, step: int, loss: float, lr: float, images: int, seconds: float) -> None:
        """Tell that a step is done, and how long it alone took."""
        self.images += images
        speed = self.images / max(1e-9, time.monotonic() - self.start)
        self.bar.update(self.task, completed=step, loss=f"{loss:.3f}", speed=f"{speed:.1f}")
        row = {"step": step, "loss": loss, "lr": lr, "images_per_second": round(speed, 2)}
        self.record(row | {"seconds": round(seconds, 4)})
        now = time.monotonic()
        if self.bar.disable and (now - self.last_line > _LINE_EVERY or step == self.steps):
            left = (self.steps - step) * (now - self.start) / max(1, self.images / images)
            self.console.print(
                f"step {step}/{self.steps}  loss {loss:.3f}  {speed:.1f} images/s  {left:.0f} s left",
                markup=False,
            )
            self.last_line = now

    def validation(self, step: int, scores: dict[str, Any], best: bool) -> None:
        """Tell the scores of a validation."""
        value = scores[self.metric]
        self.bar.update(self.task, metric=f"{self.metric} {value:.4f}")
        told = f"step {step}  validation {self.metric} {value:.4f}{'  (best)' if best else ''}"
        self.console.print(told, markup=False)
        self.record({"step": step, "best": best, **{f"val/{name}": value for name, value in scores.items()}})

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def record(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl; what is not finite is null, as JSON has no name for it.

        Raises:
            WriteError: the disk is full or the folder not writable.
        """
        if self.enabled:
            plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            with write_errors(self.file), self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(plain) + "\n")
