"""A small backbone and small data sets, made here; no network, one thread for each test process."""

import os
import sys
from pathlib import Path

import pytest
import torch

from convlora.backbone.initialise import random_sam
from convlora.backbone.weights import save_sam
from convlora.checkpoint import save_pretrained
from convlora.cli import main
from convlora.model import Segmenter
from small import SMALL, write_shapes

torch.set_num_threads(1)

# run by test_other_device_*.py, in a process of their own
collect_ignore = [] if "CONVLORA_RUNS_OF_THE_CPU" in os.environ else ["other_device"]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session", autouse=True)
def _shared_cache(tmp_path_factory):
    """For what fixtures of a wider scope train; never the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVLORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVLORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def small_backbone(tmp_path_factory) -> Path:
    """Folder of a random SAM with two blocks, 64 px, patch 8."""
    folder = tmp_path_factory.mktemp("backbone")
    save_sam(random_sam(SMALL), folder)
    return folder


@pytest.fixture(scope="session")
def binary_data(tmp_path_factory) -> Path:
    """Discs on noise, 8 / 4 / 4 images of two sizes."""
    return write_shapes(tmp_path_factory.mktemp("binary"), 2, {"train": 8, "val": 4, "test": 4})


@pytest.fixture(scope="session")
def three_class_data(tmp_path_factory) -> Path:
    """Discs and bars on noise, 8 / 4 / 4 images of two sizes."""
    return write_shapes(tmp_path_factory.mktemp("three"), 3, {"train": 8, "val": 4, "test": 4})


@pytest.fixture
def command(monkeypatch, capsys):
    """Run `convlora` with these arguments in this process; returns exit code, standard output and error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["convlora", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        out = capsys.readouterr()
        assert "Traceback" not in out.err
        return code, out.out, out.err

    return call


@pytest.fixture(scope="session")
def binary_adapter(tmp_path_factory, small_backbone) -> Path:
    """Untrained binary model on the small backbone."""
    folder = tmp_path_factory.mktemp("adapter") / "binary"
    save_pretrained(Segmenter.from_backbone(str(small_backbone), ("background", "foreground")), folder)
    return folder
