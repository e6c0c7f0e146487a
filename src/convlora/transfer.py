"""Copies between the memories of a computer."""

import torch


def need_not_wait(device: torch.device) -> bool:
    """Whether a copy to the device may go on while its source is freed.

    CUDA's allocator and its copies from unpinned memory see to that. Apple's may read the source after it was
    given to somebody else (pytorch issue 189690: wrong numbers without a word).
    """
    return device.type != "mps"
