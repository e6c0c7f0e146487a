"""Keep the Dice of each image beside the runs whose folders are still there; trains nothing.

    python benchmarks/study/images.py DATA --part others --set cracks [--work DIR]

Runs that were made before `run.py` kept it are scored again, and kept where their mean over images is that of
the kept scores (to 0.0005: other processors round otherwise); else it is told, and nothing is kept.
"""

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # what the benchmarks share

from comparisons import BY_IMAGE, METRIC, RESULTS

import convlora

NEAR = 0.0005


def of_images(file: Path) -> dict[str, float]:
    """Name -> mean Dice of the foreground, from a table of images; those that have none are left out."""
    with file.open(encoding="utf-8", newline="") as opened:
        return {row["image"]: float(row[METRIC]) for row in csv.DictReader(opened) if row[METRIC]}


def scored_again(run: Path, data: Path, split: str) -> tuple[float, dict[str, float]]:
    """Mean over images, and each image's Dice, of the best model of a run."""
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "images.csv"
        scores = convlora.evaluate(run / "best", data, split, per_image=table)
        return scores[BY_IMAGE], of_images(table)


def kept_elsewhere(name: str) -> dict[str, dict[str, float]]:
    """Digest of a run on a set -> its images, of all parts."""
    contents = [json.loads(file.read_text()) for file in sorted(RESULTS.glob(f"*-{name}.json"))]
    runs = [run for content in contents for run in content["runs"].values()]
    return {run["result"]["digest"]: run["images"] for run in runs if "images" in run}


def complete(file: Path, runs: Path, data: Path) -> None:
    """Add what is missing to a file of results, run by run; what another part keeps of a run is taken."""
    content, known = json.loads(file.read_text()), kept_elsewhere(file.stem.rpartition("-")[2])
    for run in content["runs"].values():
        if "images" not in run and (images := known.get(run["result"]["digest"])):
            run["images"] = images
    file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    for name, run in content["runs"].items():
        if run["tuning"] or "images" in run or not (runs / name / "run" / "best").is_dir():
            continue
        mean, images = scored_again(runs / name / "run", data, "test")
        kept = run["result"]["scores"][BY_IMAGE]
        if abs(mean - kept) > NEAR:
            print(f"{file.stem} {name}: {mean:.4f} by image, {kept:.4f} is kept; left alone", flush=True)
            continue
        run["images"] = images
        file.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        print(f"{file.stem} {name}: {len(images)} images", flush=True)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("data", type=Path)
    made.add_argument("--work", type=Path, default=Path("study"))
    made.add_argument("--part", required=True)
    made.add_argument("--set", required=True)
    options = made.parse_args()
    name = f"{options.part}-{options.set}"
    complete(RESULTS / f"{name}.json", options.work / name / "runs", options.data / options.set)


if __name__ == "__main__":
    main()
