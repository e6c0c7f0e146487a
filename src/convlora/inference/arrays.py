"""Write a large .npy file from rows, without holding it."""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.lib import format as npy


class NpyRows:
    """A .npy file of (K, H, W) float16 that is filled by rows; a context that closes it.

    It is written in place and not mapped into memory, where it would count as the process's own.

    Args:
        file: to be written.
        shape: (K, H, W).
    """

    def __init__(self, file: Path, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.opened = file.open("wb")
        header = {"descr": npy.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self.opened, header)
        self.start = self.opened.tell()

    def write(self, top: int, rows: np.ndarray) -> None:
        """Write (K, n, W) values of the rows from `top` on."""
        _, height, width = self.shape
        for k, values in enumerate(rows.astype(np.float16)):
            self.opened.seek(self.start + 2 * width * (k * height + top))
            self.opened.write(values.tobytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.opened.close()
