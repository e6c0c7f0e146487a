"""Image embeddings on disk, shared by all runs of a user: one memory-mapped file for each, under a hash.

A file appears whole or not at all, and carries the SHA-256 of its tensor: one that is damaged is as good as
none. No pickle. The files are a cache: any of them may be removed at any time.
"""

import contextlib
import hashlib
import math
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from convlora.errors import ConfigError
from convlora.output import CACHE, cache_root

#: Environment variable: the most that the embeddings may take.
LIMIT = "CONVLORA_CACHE_GB"
_DEFAULT_GB = 20.0
_GB = 10**9
_TENSOR = "embedding"


def cache_folder() -> Path:
    """Folder of the embeddings: in $CONVLORA_CACHE, else in the user's cache folder."""
    return cache_root() / "embeddings"


def cache_limit() -> int:
    """Most bytes that the folder may take: $CONVLORA_CACHE_GB, else 20 GB.

    Raises:
        ConfigError: the variable is no number from 0.
    """
    text = os.environ.get(LIMIT)
    try:
        limit = float(text) if text else _DEFAULT_GB
    except ValueError:
        limit = math.nan
    if not 0 <= limit < math.inf:
        raise ConfigError(
            f"The environment variable {LIMIT} is {text!r}; it must be a number of gigabytes, such as 50, or "
            "0 to keep none. Change it, or unset it for 20."
        )
    return int(limit * _GB)


_LOOK_EVERY = 64
"""Embeddings written between looks at what other processes have written: few enough for the limit to hold."""

_COARSE = 2.0
"""Seconds that the times of files may lag behind the clock: some ms on a disk, up to two on others."""


class EmbeddingStore:
    """Embeddings by key.

    Args:
        folder: made when the first is written.
        limit: most bytes that all files may take. Those that were not used for longest make room, but none
            that was used since this object was made.
        warn: told, once, why nothing more can be written.
    """

    def __init__(self, folder: Path, limit: int, warn: Callable[[str], None]) -> None:
        self.folder, self.limit, self.warn = folder, limit, warn
        self.started = time.time() - _COARSE
        self.taken = sum(size for _, size, _ in self._files())
        self.written = 0
        self.closed = False

    def read(self, key: str, check: bool = False) -> Tensor | None:
        """Map an embedding into memory.

        Args:
            key: file name.
            check: compare the tensor with its hash, and note that it is in use.

        Returns:
            The tensor as it was written, or None if there is none or it is damaged.
        """
        file = self._file(key)
        try:
            with safe_open(file, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(_TENSOR)
                hash_then = (opened.metadata() or {}).get("sha256")
        except (SafetensorError, OSError, ValueError):
            return None
        if check:
            if hash_tensor(tensor) != hash_then:
                return None
            with contextlib.suppress(OSError):  # a folder that can only be read serves as well
                os.utime(file)
        return tensor

    def write(self, key: str, embedding: Tensor) -> None:
        """Keep an embedding. Where that is not possible the user is told once, and nothing else happens."""
        if self.closed:
            return
        size = embedding.numel() * embedding.element_size()
        if not self._make_room(size):
            self._close(
                f"the {self.limit / _GB:g} GB that {self.folder} may take are full with what this run, or "
                f"one beside it, uses. Set the environment variable {LIMIT} to more"
            )
            return
        try:
            self._write(self._file(key), embedding)
        except (OSError, SafetensorError) as error:
            self._close(
                f"{self.folder} cannot be written: {error}. Make room, or set the environment variable "
                f"{CACHE} to a folder elsewhere"
            )

    def _write(self, file: Path, embedding: Tensor) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # a name of its own: another process may be writing the same embedding
        part = file.with_name(f"{file.name}.{secrets.token_hex(4)}.part")
        try:
            save_file({_TENSOR: embedding}, part, metadata={"sha256": hash_tensor(embedding)})
            taken = part.stat().st_size
            part.replace(file)
            self.taken += taken
            self.written += 1
        finally:
            part.unlink(missing_ok=True)

    def _make_room(self, size: int) -> bool:
        if self.written and self.written % _LOOK_EVERY == 0:  # other processes write there too
            self.taken = sum(size for _, size, _ in self._files())
        if self.taken + size <= self.limit:
            return True
        files = sorted(self._files())
        self.taken = sum(size for _, size, _ in files)
        for used, taken, file in files:
            if self.taken + size <= self.limit or used >= self.started:
                break
            with contextlib.suppress(OSError):
                file.unlink()
                self.taken -= taken
        return self.taken + size <= self.limit

    def _files(self) -> list[tuple[float, int, Path]]:
        """Time of last use, size, path; what a kill left half-written is among them."""
        found = []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat()
                    found.append((status.st_mtime, status.st_size, Path(entry.path)))
        return found

    def _close(self, reason: str) -> None:
        self.closed = True
        self.warn(
            f"warning: no more embeddings are kept: {reason}. The run goes on and computes them anew each "
            "time, to the same result."
        )

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def hash_tensor(tensor: Tensor, start: str = "") -> str:
    """SHA-256 of some text, and of a tensor's dtype, shape and bytes; hexadecimal."""
    total = hashlib.sha256(f"{start}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
    total.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
