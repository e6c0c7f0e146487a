"""What several processes must agree on before they train together, and how they part."""

import hashlib
import os
from datetime import timedelta

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env

from convlora.errors import ConfigError

if torch.distributed.is_available():
    # its functions' defaults hold whatever connection exists when DDP imports it, and nothing ends that then
    import torch.distributed.nn.functional


#: Processes wait for each other while each computes the embeddings that its machine lacks, which may take
#: longer than the ten minutes after which NCCL ends all of them.
PATIENCE = timedelta(hours=3)


def meet() -> PartialState:
    """Let the processes of this run find each other; a process alone is one too.

    It trains on the CPU where nothing else is there, or `ACCELERATE_USE_CPU` asks for it: processes launched
    on a machine without a GPU would each train alone without that.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(cpu=cpu, **({"timeout": PATIENCE} if several else {}))


def check_launcher_variables() -> None:
    """Check what a launcher sets in the environment, before accelerate reads it.

    Raises:
        ConfigError: a number is none, or several processes are named without an address to meet at.
    """
    start = "unset it, or start with a launcher (accelerate launch ..., or torchrun ...)"
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        value = os.environ.get(name)
        if value is not None and not _is_whole(value):
            raise ConfigError(
                f"The environment variable {name} is {value!r}; a launcher sets it to a whole number. "
                f"Please {start}."
            )
    count = int(os.environ.get("WORLD_SIZE", "1"))
    missing = [name for name in ("RANK", "MASTER_ADDR") if not os.environ.get(name)]
    if count > 1 and missing:
        raise ConfigError(
            f"The environment variable WORLD_SIZE is {count}, but no launcher has set {missing[0]}, without "
            f"which {count} processes cannot meet. Please {start}."
        )


def _is_whole(text: str) -> bool:
    try:
        return int(text) >= -1  # accelerate's 'none'
    except ValueError:
        return False


def check_launch(accelerator: Accelerator) -> None:
    """Notice a launcher that was asked for several processes and started one.

    `accelerate launch --cpu --num_processes 2` does that where MPI is not used; it sets the address that the
    processes would meet at, and nothing else.

    Raises:
        ConfigError: with the command that starts them.
    """
    asked = parse_flag_from_env("ACCELERATE_USE_CPU") and "MASTER_PORT" in os.environ
    if asked and accelerator.num_processes == 1 and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "The launcher was asked for several processes (MASTER_PORT is set) and has started one: on CPUs, "
            "accelerate starts more only through MPI. Start them with: torchrun --nproc_per_node N "
            "-m convlora train ..., or leave the launcher out for one process."
        )


def check_agreement(accelerator: Accelerator, **mine: str) -> None:
    """Check that all processes hold the same; on several machines each reads its own files.

    Args:
        accelerator: knows the processes; all of them must call this.
        mine: what this process has, by name; underscores are shown as spaces.

    Raises:
        ConfigError: in every process, if one holds something else than the first; names what and which.
    """
    if accelerator.num_processes == 1:
        return
    digests = [hashlib.sha256(value.encode()).digest()[:7] for value in mine.values()]
    row = torch.tensor([[int.from_bytes(digest) for digest in digests]], device=accelerator.device)
    rows = accelerator.gather(row).cpu()
    for name, column in zip(mine, rows.T, strict=True):
        others = (column != column[0]).nonzero().flatten().tolist()
        if others:
            raise ConfigError(
                f"Process {others[0]} differs from process 0 in: {name.replace('_', ' ')}. All processes "
                "must be given the same options and see the same DATA and --out. Put both on storage that "
                "all machines share."
            )


def disconnect(accelerator: Accelerator) -> None:
    """Part from the other processes, with none of the connection's threads left when Python ends.

    A thread of Gloo that lets go of a tensor while Python ends aborts the process (PyTorch issue 190489), and
    a launcher reports the finished run as failed. The connection's threads end with the last reference to
    it, and DDP holds one: the caller must have dropped the wrapped model.

    Args:
        accelerator: knows the processes; all of them must call this, with no work between them under way.
    """
    if (
        torch.distributed.is_available() and torch.distributed.is_initialized()
    ):  # also a launcher's one process
        accelerator.wait_for_everyone()
        accelerator.free_memory()  # it holds the wrapped model too; collects cycles
    accelerator.end_training()
