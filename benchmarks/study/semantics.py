"""Claim 6: what a linear probe finds in the features before and after tuning, and how far attention reaches.

    python benchmarks/study/semantics.py DATA [--methods lora,full] [--seeds 3] [--work study]

On CamVid's classes. Runs of the part `default` that lie in `--work` are taken; others are trained as it says.
Keeps a run of every method and seed in benchmarks/study/results/semantics/camvid.json.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent.parent))  # what the benchmarks share

from kept import command, commit

from common import environment
from convlora.analysis.analyze import analyze
from convlora.analysis.result import Analysis
from convlora.backbone.weights import load_sam
from convlora.comparison.cell import train_to_the_end
from convlora.config import make_config

HERE = Path(__file__).parent
FILE = HERE / "results" / "semantics" / "camvid.json"


def trained(data: Path, method: str, seed: int, work: Path, common: dict[str, Any]) -> Path:
    """Run folder of a method and seed."""
    cell = work / "default-camvid" / "runs" / f"{method}-seed{seed}"
    if (cell / "result.json").is_file() and (cell / "run" / "best").is_dir():  # finished, and of this machine
        return cell / "run"
    own = work / "semantics" / f"{method}-seed{seed}"
    shared = {"data": data, "out": own, "method": method, "seed": seed, "previews": 0}
    train_to_the_end(make_config({**shared, **common}))
    return own


def summary(found: Analysis) -> dict[str, Any]:
    """Probe scores, and the mean attention distance of global blocks in pixels, before and after."""
    return {
        when: {
            "probe": {place: probe.mean_iou for place, probe in found.probes[when].items()},
            "attention distance": {
                block: fmean(heads)
                for block, heads in found.distances[when].items()
                if found.windows[block] == 0
            },
        }
        for when in ("before", "after")
    }


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("data", type=Path)
    made.add_argument("--methods", default="lora,conv-lora,full")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--images", type=int, default=64)
    made.add_argument("--work", type=Path, default=Path("study"))
    options, ran = made.parse_args(), command(sys.argv)
    common = yaml.safe_load((HERE / "plan.yaml").read_text())["common"]
    common.pop("metrics")
    fingerprint = load_sam(common["backbone"]).fingerprint
    content = json.loads(FILE.read_text()) if FILE.exists() else {}
    if content.get("backbone") != fingerprint:
        content = {"backbone": fingerprint, "runs": {}}
    for seed in range(options.seeds):
        for method in options.methods.split(","):
            name = f"{method}-seed{seed}"
            if name in content["runs"]:
                continue
            run = trained(options.data / "camvid", method, seed, options.work, common)
            out = options.work / "analysis" / name
            found = analyze(run, options.data / "camvid", out, images=options.images)
            content["runs"][name] = {
                "method": method,
                "seed": seed,
                **summary(found),
                "made": {"commit": commit(), "command": ran, **environment()},
            }
            FILE.parent.mkdir(parents=True, exist_ok=True)
            FILE.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
