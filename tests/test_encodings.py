"""Text files are UTF-8 whatever the system's own encoding is."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import convlora

PACKAGE = Path(convlora.__file__).parent
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def is_text_without_encoding(call):
    if not isinstance(call.func, ast.Attribute | ast.Name) or any(k.arg == "encoding" for k in call.keywords):
        return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else call.func.id
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    if name != "open":
        return name == "read_text" or (name == "write_text" and isinstance(call.func, ast.Attribute))
    modes = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    no_text = {"os", "Image", "rasterio", "memory"}  # descriptors, pictures, rasters
    of_other = isinstance(owner, ast.Name) and owner.id in no_text
    return not of_other and not any("b" in mode for mode in modes)


def test_every_text_file_is_opened_with_an_encoding():
    found, seen = [], 0
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            seen += isinstance(node, ast.Call)
            if isinstance(node, ast.Call) and is_text_without_encoding(node):
                found.append(f"{file.relative_to(PACKAGE)}:{node.lineno}")
    assert seen > 1000
    assert found == []


def test_the_search_finds_what_it_looks_for():
    wrong = ["f.read_text()", "f.write_text(t)", "f.open()", 'f.open("a")', "open(f)", "(a / b).read_text()"]
    right = ['f.open("rb")', 'f.read_text(encoding="utf-8")', "write_text(f, t)", "os.open(f, 1)"]
    calls = {text: ast.parse(text, mode="eval").body for text in (*wrong, *right)}
    assert [text for text, call in calls.items() if is_text_without_encoding(call)] == wrong


def test_names_beyond_ascii_where_the_system_knows_ascii_only(binary_data, small_backbone, tmp_path):
    data, out = tmp_path / "zellkörper", tmp_path / "läufe"
    data.mkdir()
    for split in ("train", "val"):
        (data / split).symlink_to(binary_data / split)
    (data / "classes.txt").write_text("Hintergrund\nZellkörper\n", encoding="utf-8")
    call = [sys.executable, "-c", "from convlora.cli import main; main()"]
    options = ["--backbone", small_backbone, "--image-size", 64, "--max-steps", 1, "--set", "previews=0"]
    arguments = map(str, [*call, "train", data, "--out", out, *options])
    done = subprocess.run(list(arguments), capture_output=True, check=False, env={**os.environ, **ASCII})
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr.decode()
    card = (out / "best" / "README.md").read_text(encoding="utf-8")
    assert "Classes: Hintergrund, Zellkörper." in card
    assert f"train {data}" in card.replace("'", "")
    content = json.loads((out / "best" / "adapter_config.json").read_text(encoding="utf-8"))
    assert content["classes"] == ["Hintergrund", "Zellkörper"]
