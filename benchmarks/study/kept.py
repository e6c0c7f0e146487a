"""What the study has measured so far: a file for each comparison, that later runs go on from."""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from images import of_images

from common import environment
from convlora.backbone.weights import load_sam
from convlora.comparison.cell import IMAGES
from convlora.comparison.entries import Cell
from convlora.comparison.launch import Task
from convlora.comparison.outcome import identity
from convlora.comparison.settings import FILE
from convlora.config import make_config
from convlora.training.plan import make_plan

_FILES = (FILE, "learning_rates.json")


class Kept:
    """Results of one comparison.

    Args:
        file: where they are kept, in git.
        out: folder of the comparison.
        backbone: runs from other weights under the same name are dropped.
    """

    def __init__(self, file: Path, out: Path, backbone: str) -> None:
        self.file, self.out = file, out
        loaded = load_sam(backbone)
        self.fingerprint = loaded.fingerprint
        config = make_config({"data": "data", "out": "out"})
        self.default_lr = make_plan(config, 1, loaded.sam.spec.encoder.embed_dim).lr
        before = json.loads(file.read_text()) if file.exists() else {}
        same = before.get("backbone") == self.fingerprint
        if before.get("runs") and not same and backbone.startswith("random:"):
            raise SystemExit(
                f"{file} holds runs of other random weights: processors with other vector instructions draw "
                "others from the same seed. Go on where it was begun, or move the file away."
            )
        self.content: dict[str, Any] = (
            before if same else {"backbone": self.fingerprint, "runs": {}, "files": {}}
        )

    def restore(self) -> None:
        """Put finished runs into the comparison's folder, which then takes them for its own."""
        for name, text in self.content["files"].items():
            target = self.out / name
            if not target.exists():
                self.out.mkdir(parents=True, exist_ok=True)
                target.write_text(text)
        for name, run in self.content["runs"].items():
            target = self.out / "runs" / name / "result.json"
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(json.dumps(run["result"], indent=2) + "\n")

    def add(
        self,
        cell: Cell,
        result: dict[str, Any],
        made: dict[str, Any] | None = None,
        images: dict[str, float] | None = None,
    ) -> None:
        """Keep a run that has just ended, where it was made, and each image's Dice; not one that failed."""
        if "error" in result:
            return
        made = made or {"commit": commit(), "command": command(sys.argv), **environment()}
        table = self.out / "runs" / cell.name / IMAGES
        if images is None and table.exists():
            images = of_images(table)
        self.content["runs"][cell.name] = {
            **identity(cell),
            "tuning": cell.tuning,
            "result": result,
            "made": made,
            **({"images": images} if images else {}),
        }
        self.write()

    def adopt(self, task: Task) -> dict[str, Any] | None:
        """Result of a run of another part on this set, of the same configuration and backbone.

        A run whose test images were scored serves a part on validation too: its model was scored there, all
        the same, when it was chosen. The default learning rate is the same spelt out and left out.
        """
        name = self.file.stem.rpartition("-")[2]
        same = [task, *self._spelt_otherwise(task)]
        digests = [equal.digest for equal in same]
        on_test = [replace(equal, split="test").digest for equal in same] if task.split == "val" else []
        for file in sorted(self.file.parent.glob(f"*-{name}.json")):
            other = json.loads(file.read_text())
            for run in other["runs"].values() if other["backbone"] == self.fingerprint else ():
                result, tuning, images = run["result"], run["tuning"], run.get("images")
                if result["digest"] in on_test and not tuning:
                    result = {**result, "digest": task.digest, "scores": result["validation"]}
                    images = None  # of test
                if result["digest"] in digests and tuning == task.cell.tuning:
                    result = {**result, "digest": task.digest}
                    self.add(task.cell, result, run["made"], images)
                    return result
        return None

    def _spelt_otherwise(self, task: Task) -> list[Task]:
        """The same run, if it has the default learning rate, with that left out or spelt out."""
        lr = task.config.get("lr")
        if lr not in (None, self.default_lr):
            return []
        return [replace(task, config={**task.config, "lr": self.default_lr if lr is None else None})]

    def finish(self, outcome: dict[str, Any]) -> None:
        """Keep the tables of a whole comparison; the single runs are there already."""
        configuration = {k: v for k, v in outcome["configuration"].items() if k not in ("data", "out")}
        self.content["outcome"] = {"rows": outcome["rows"], "configuration": configuration}
        self.content["outcome"] |= {key: outcome[key] for key in ("data", "settings")}

    def write(self) -> None:
        """Write the file whole."""
        for name in _FILES:
            if (self.out / name).exists():
                self.content["files"][name] = (self.out / name).read_text()
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1, sort_keys=True, default=str) + "\n")
        part.replace(self.file)


def command(words: Sequence[str]) -> str:
    """How a script was called, for anyone: folders of this machine are left out."""
    kept, skip = [], False
    for word in words:
        if not skip and word != "--work":
            kept.append("DATA" if Path(word).is_dir() else word)
        skip = word == "--work"
    return shlex.join(kept)


def commit() -> str:
    """Commit that the code is at, marked where files but those of results differ from it."""
    found = _git("rev-parse", "--short=12", "HEAD")
    root = _git("rev-parse", "--show-toplevel")
    others = (root, ":(exclude,top)benchmarks/study/results")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", *others)
    return f"{found}-dirty" if found and changed else found or "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return done.stdout.strip()
