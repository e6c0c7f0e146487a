"""Numbers of a run that follow from its configuration and data: steps, batches, learning rate."""

from dataclasses import dataclass

from convlora.config import RunConfig
from convlora.errors import ConfigError

#: Peak learning rate by the width of the encoder: the official code's 1e-4 for ViT-B and up; the bundled
#: small model takes, and needs, ten times as much (docs/log.md).
_WIDE, _LR_WIDE, _LR_SMALL = 768, 1e-4, 1e-3
_MOST_VALIDATIONS = 20


@dataclass(frozen=True)
class Plan:
    """How many steps of how many images, and when to look."""

    steps: int
    batch_size: int  # images a step over all processes
    micro_batch: int  # images in memory at once on each process
    processes: int
    lr: float
    eval_every: int

    @property
    def micro_batches(self) -> int:
        """Forward and backward passes a step on each process."""
        return self.batch_size // (self.processes * self.micro_batch)


def make_plan(config: RunConfig, train_images: int, embed_dim: int, processes: int = 1) -> Plan:
    """Derive the plan.

    Args:
        config: the run.
        train_images: images in the training split.
        embed_dim: width of the encoder.
        processes: processes that train together.

    Raises:
        ConfigError: batch_size cannot be divided among the processes and micro-batches.
    """
    per_process = config.batch_size // processes
    if per_process * processes != config.batch_size:
        raise ConfigError(
            f"batch_size is {config.batch_size} and there are {processes} processes; it must be a multiple "
            f"of their number. Set batch_size to {processes * max(1, round(config.batch_size / processes))}."
        )
    wide = embed_dim >= _WIDE  # at 1024 px one image fills an 8 GB card
    micro = min(config.micro_batch or (1 if wide else per_process), per_process)
    if per_process % micro:
        raise ConfigError(
            f"micro_batch is {micro}; it must divide the {per_process} images that each process has of "
            "a batch."
        )
    epoch = max(1, -(-train_images // config.batch_size))
    steps = config.max_steps or max(1, -(-config.epochs * train_images // config.batch_size))
    every = config.eval_every or max(epoch, -(-steps // _MOST_VALIDATIONS))
    lr = config.lr or (_LR_WIDE if wide else _LR_SMALL)
    return Plan(steps, config.batch_size, micro, processes, lr, min(every, steps))
