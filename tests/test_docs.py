"""The pages whose tables follow from the code."""

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
sys.path[:0] = [str(DOCS)]

import reference  # noqa: E402  # a script, not a package

from convlora.adapters import methods  # noqa: E402
from convlora.config import RunConfig, describe_keys  # noqa: E402
from convlora.losses import LOSSES  # noqa: E402


@pytest.mark.parametrize("name", reference.TABLES)
def test_the_page_is_what_the_code_gives(name):
    file = DOCS / name
    assert file.read_text(encoding="utf-8") == reference.page(file), "run: python docs/reference.py"


def test_every_key_loss_and_method_is_there():
    commands, methods_page = ((DOCS / name).read_text(encoding="utf-8") for name in reference.TABLES)
    for name in (*RunConfig.model_fields, *LOSSES):
        assert f"| `{name}` |" in commands
    for name in methods():
        assert f"| `{name}` |" in methods_page


def test_defaults_are_written_as_yaml():
    defaults = {key.name: key.default for key in describe_keys()}
    assert defaults["data"] == ""
    assert defaults["method"] == "conv-lora"
    assert defaults["lr"] == "null"
    assert defaults["checkpointing"] == "false"
    assert (defaults["epochs"], defaults["weight_decay"]) == ("30", "0.0001")
