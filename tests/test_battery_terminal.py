"""Streams, terminals and exit codes: closed pipes, full disks, narrow and ASCII terminals, missing extras."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from convlora.backbone.initialise import random_sam
from convlora.backbone.weights import save_sam
from convlora.cli.show import print_scores
from convlora.errors import ConvLoraError
from convlora.training.report import Reporter
from small import SMALL

CALL = [sys.executable, "-c", "from convlora.cli import main; main()"]


def shell(*arguments, stdout=subprocess.PIPE, **environment):
    return subprocess.run(
        [*CALL, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        check=False,
    )


def test_a_closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    done = shell("backbones", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk_behind_standard_output():
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = shell("backbones", "--json", stdout=full)
    assert done.returncode != 0
    assert b"error: No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="closes streams as a shell does")
def test_a_stream_that_is_closed():
    """As of a daemon; what is for one of the streams must not go to the other."""
    closed = ["sh", "-c", '"$0" "$@" >&-', *CALL, "--version"]
    done = subprocess.run(closed, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    closed = ["sh", "-c", '"$0" "$@" 2>&-', *CALL, "convert", "/nowhere", "--out", "/nowhere/new"]
    done = subprocess.run(closed, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_terminal_that_knows_ascii_only(tmp_path):
    done = shell("check", "/nowhere/zellkörper", PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert b"zellk\\xf6rper" in done.stdout  # the report is on standard output
    assert b"Traceback" not in done.stderr
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    (tmp_path / "images" / "zellkörper.png").write_bytes(b"")
    done = shell("check", str(tmp_path), PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert b"zellk\\xf6rper.png: no mask" in done.stdout
    assert b"Traceback" not in done.stderr
    done = shell("backbones", PYTHONIOENCODING="ascii", COLUMNS="20")
    assert done.returncode == 0
    assert b"facebook/sam-vit-huge" in done.stdout


LONG = "b" * 60
KINDS = ("dice", "iou", "image_dice", "image_iou")
SCORES = {"split": "test", "n_images": 4, "mean_iou": 0.1234}
SCORES |= {f"{kind}/{name}": 0.5678 for kind in KINDS for name in ("[red] cell", r"a\[b]", LONG)}
SCORES |= {f"{image}mean_{kind}_foreground": 0.9876 for image in ("", "image_") for kind in ("dice", "iou")}


@pytest.mark.parametrize("columns", ["1", "20", "400", "x"])
def test_no_number_is_cut_off(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    print_scores(SCORES)
    out = capsys.readouterr().out
    assert out.count("0.5678") == 12
    assert out.count("0.9876") == 4
    assert "[red] cell" in out
    assert r"a\[b]" in out
    assert LONG in out


def test_square_brackets_are_no_markup(tmp_path, capsys):
    with Reporter(tmp_path, 1, "dice/a[/b]") as reporter:
        reporter.step(1, 0.5, 0.1, 1, 1.0)
        reporter.validation(1, {"dice/a[/b]": 0.25}, best=True)
    assert "step 1  validation dice/a[/b] 0.2500  (best)" in capsys.readouterr().out


@pytest.mark.parametrize("columns", ["1", "20"])
def test_methods_on_a_narrow_terminal(command, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    code, out, _ = command("methods", "--backbone", "sam-tiny")
    assert code == 0
    for text in ("conv-lora", "decoder-only", "641,344", "99.21 %", "balance_weight=0.01"):
        assert text in out
    assert (
        "With --preset default, where none of the router's options is given, conv-lora has routing=soft"
        in out
    )


def test_json_of_the_lists(command):
    code, out, _ = command("methods", "--backbone", "sam-tiny", "--json")
    listed = {row["method"]: row for row in json.loads(out)["methods"]}
    assert code == 0
    assert json.loads(out)["preset_default"]["conv-lora"]["gain"] == 8.0
    assert listed["lora"]["options"]["rank"] == {"default": 3, "help": "Rank of the update."}
    assert 0 < listed["lora"]["share"] < listed["full"]["share"] < 1
    code, out, _ = command("backbones", "--json")
    assert code == 0
    assert {row["name"]: row["native size"] for row in json.loads(out)}["sam-tiny"] == 256


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/data/x"),
            2,
            "error: /data/x: Permission denied",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: No space left on device"),
        (OSError("something odd"), 2, "error: something odd"),
        (KeyboardInterrupt(), 130, "stopped"),
        (ConvLoraError("what and how"), 2, "error: what and how"),
    ],
)
def test_exit_codes(command, binary_adapter, monkeypatch, error, code, message):
    def fail(*_):
        raise error

    monkeypatch.setattr("convlora.checkpoint.find_adapter", fail)
    got, _, text = command("info", binary_adapter)
    assert (got, text.strip()) == (code, message)


def test_a_bug_shows_its_traceback(command, binary_adapter, monkeypatch):
    monkeypatch.setattr("convlora.checkpoint.find_adapter", lambda *_: {}["bug"])
    with pytest.raises(KeyError, match="bug"):
        command("info", binary_adapter)


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("nilearn", ["sample", "brain", "OUT"], "convlora[sample]"),
        ("skimage", ["pretrain", "--out", "OUT", "--scenes", "1", "--workers", "1"], "convlora[pretrain]"),
    ],
)
def test_missing_extras(command, tmp_path, monkeypatch, module, arguments, extra):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    code, _, error = command(*[str(tmp_path / "out") if a == "OUT" else a for a in arguments])
    assert code == 2
    assert f"pip install '{extra}'" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "nan"], "--minutes is nan; it must be a finite number above 0"),
        (["--minutes", "0"], "--minutes is 0; it must be"),
        (["--scenes", "0"], "'--scenes'"),
        (["--workers", "-1"], "'--workers'"),
        (["--seed", "-1"], "'--seed'"),
        (["--lr", "0"], "--lr is 0; it must be above 0 and below 1"),
        (["--full-from", "1.5"], "'--full-from'"),
        (["--init", "nowhere"], "nowhere"),
        (["--init", "random:facebook/sam-vit-base"], "works on images of 1024 px; the scenes have 256 px"),
        ([], "is a file, not a folder"),
    ],
)
def test_pretrain_mistakes(command, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    place = tmp_path / "out" if arguments else tmp_path / "file"
    code, _, error = command("pretrain", "--out", place, *arguments)
    assert (code, message in error) == (2, True), error


@pytest.mark.parametrize("patch", [6, 12])
def test_pretrain_names_patches_that_do_not_fit(command, tmp_path, patch):
    """One has no whole cells of the decoder's masks, the other no whole patches in the first crops."""
    save_sam(
        random_sam(replace(SMALL, encoder=replace(SMALL.encoder, patch_size=patch, image_size=8 * patch))),
        tmp_path / "start",
    )
    code, _, error = command(
        "pretrain", "--out", tmp_path / "out", "--init", tmp_path / "start", "--no-teacher"
    )
    assert code == 2
    assert f"start has patches of {patch} px. Pretraining needs patches that are a multiple of 4 px" in error
    assert "divide the first crops' 128 px" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Usage"),
        (["trian"], "No such command 'trian'"),
        (["train"], "Missing argument"),
        (["train", "d"], "Missing option '--out'"),
        (["predict", "r", "--out", "o"], "Missing argument"),
        (["evaluate", "r", "d", "--jsn", "x"], "No such option: --jsn"),
    ],
)
def test_usage(command, arguments, message):
    code, out, error = command(*arguments)
    assert code == 2
    assert message in out + error


def test_a_mistake_shows_before_torch_is_loaded(tmp_path):
    code = (
        "import sys; from convlora.cli import main\n"
        f"sys.argv = ['convlora', 'predict', 'RUN', {str(tmp_path / 'no.png')!r}, '--out', 'masks']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 2\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no.png does not exist" in done.stderr
