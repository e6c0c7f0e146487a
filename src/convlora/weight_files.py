"""JSON and safetensors files, here or on the hub, that may be missing, cut off, or something else."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from convlora.errors import WeightsError

_LFS, _ZIP, _PICKLE = b"version https://git-lfs", b"PK\x03\x04", b"\x80"


def fetch(name: str, patterns: list[str]) -> Path:
    """Fetch files of a repository on the Hugging Face hub into its cache; offline mode is honoured.

    Args:
        name: id of the repository, such as `facebook/sam-vit-base`.
        patterns: names of the files that are wanted, with wildcards.

    Returns:
        The folder in the cache.

    Raises:
        OSError: they cannot be fetched; its text is one line.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # a cut connection is an error of the client's HTTP library or of its storage
        raise OSError(first_line(error)) from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def read_json(file: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        file: place.
        remedy: last sentence of the message where it cannot be read.

    Raises:
        WeightsError: it is missing, a folder, a pointer of Git LFS, not JSON, or no object.
    """
    _check_file(file, remedy)
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        found = str(error) if file.stat().st_size else "it is empty"
        raise WeightsError(f"{file} is damaged: it is not valid JSON ({found}). {remedy}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{file} holds a JSON {type(content).__name__}, not an object. {remedy}")
    return content


def read_tensors(file: Path, remedy: str) -> dict[str, Tensor]:
    """Read a safetensors file into memory, on the CPU.

    Args:
        file: place.
        remedy: last sentence of the message where it cannot be read.

    Raises:
        WeightsError: it is missing, a folder, a pointer of Git LFS, a pickle, or damaged.
    """
    _check_file(file, remedy)
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a dict
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error) if file.stat().st_size else "it is empty"
        raise WeightsError(f"{file} is damaged, perhaps cut off ({reason}). {remedy}") from error


def file_digest(file: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def refuse_pointer(file: Path) -> None:
    """Recognise the small text that Git LFS leaves in the place of a file that was not fetched.

    Raises:
        WeightsError: `file` is one, or cannot be opened.
    """
    if file.is_file() and _start_of(file).startswith(_LFS):
        raise WeightsError(
            f"{file} is a pointer of Git LFS, not the file itself. Fetch the files: git lfs install, then "
            "git lfs pull, in that repository."
        )


def _check_file(file: Path, remedy: str) -> None:
    if not file.is_file():
        what = "is a folder; it must be a file" if file.is_dir() else "does not exist"
        raise WeightsError(f"{file} {what}. {remedy}")
    refuse_pointer(file)
    start = _start_of(file)
    # a safetensors file starts with eight bytes of length, which may be those of a pickle, and then a brace
    if start.startswith((_ZIP, _PICKLE)) and start[8:9] != b"{" and file.suffix == ".safetensors":
        raise WeightsError(
            f"{file} is a pickle, as torch.save writes it, under the name of a safetensors file; it is not "
            f"opened, for a pickle can run code. {remedy}"
        )


def _start_of(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(64)
    except OSError as error:
        raise WeightsError(f"{file} cannot be read: {error.strerror}.") from error
