"""Out of memory: halve the micro-batch and go on with the same step."""

import gc
import sys

import torch

from convlora.errors import NoRoomError


def release_memory() -> None:
    """Free what the failed step left: cycles that hold tensors, and the allocator's cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def keep_off_main_memory(device: torch.device) -> None:
    """Let what does not fit into a GPU be an error on Windows too, so that the step is made smaller.

    The driver there would put it into the computer's own memory, and the training would crawl.
    """
    if sys.platform == "win32" and device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        torch.cuda.set_per_process_memory_fraction(free / total, device)


def cannot_halve(
    images: int, processes: int, reason: str, half: str | None, backward: bool = True
) -> NoRoomError:
    """Build the error for a step that cannot be made smaller here.

    Args:
        images: in memory at once on each process.
        processes: that train together; one alone cannot change its micro-batch, as the others wait for it.
        reason: what the allocator said.
        half: see `convlora.inference.device.advised_half`.
        backward: whether gradients of the encoder were wanted; else recomputing its blocks saves nothing.
    """
    precision = f"--precision {half}, " if half else ""
    if images > 1:
        advice = (
            f"With {processes} processes the micro-batch cannot change on the way. "
            f"Go on with --resume --micro-batch {images // 2}"
        )
    elif backward:
        advice = (
            "One image at once is the least. Go on with --resume --checkpointing if that is not in use yet, "
            f"or start a new run in another --out with {precision}a smaller --image-size, a smaller "
            "--backbone, or --method decoder-only"
        )
    else:
        advice = (
            "One image at once is the least. Start a new run in another --out with "
            f"{precision}a smaller --image-size, or a smaller --backbone"
        )
    said = reason.strip().splitlines()[0][:200] if reason.strip() else "no memory"
    return NoRoomError(
        f"Out of memory with {images} image{'s' if images > 1 else ''} at once ({said}).",
        f"{advice}. `convlora train ... --dry-run` estimates the memory. What the run has saved is kept.",
    )
