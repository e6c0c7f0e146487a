"""One run of a comparison, in a process of its own: train, score on the test split, note what it took.

    python -m convlora.comparison.cell FOLDER

FOLDER holds cell.json; the run goes to FOLDER/run and what came out to FOLDER/result.json. A process of its
own has its own peak of memory, and its crash is not the comparison's. A run that was cut off goes on.
"""

import json
import statistics
import sys
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image

from convlora import run_files
from convlora.adapter_folder import CONFIG, TENSORS
from convlora.checkpoint import from_pretrained
from convlora.config import RunConfig, make_config
from convlora.data.check import check_dataset
from convlora.data.layout import Pair
from convlora.data.splits import read_record
from convlora.errors import ConvLoraError, NoRoomError
from convlora.evaluation import new_metrics, score_pairs, write_scores
from convlora.image_scores import ImageScores
from convlora.inference.device import advised_half, autocast_dtype, choose_device
from convlora.inference.predictor import Prediction, Predictor
from convlora.output import write_text, write_whole
from convlora.state_file import read_states
from convlora.training.fit import fit

CELL, RESULT, SAMPLES, PEAK = "cell.json", "result.json", "samples", "peak_memory.json"
IMAGES = "images.csv"
_PEAK = "peak_memory_mib"
_SAMPLES = 4  # test images whose masks are kept for the picture


def run_cell(folder: Path) -> dict[str, Any]:
    """Train and score what FOLDER/cell.json says.

    Args:
        folder: of the cell.

    Returns:
        What is written to result.json: scores, parameters, times, memory.

    Raises:
        ConvLoraError: as training and evaluation do.
    """
    cell = json.loads((folder / CELL).read_text(encoding="utf-8"))
    config = make_config(cell["config"])
    trained = train_to_the_end(config)
    result = {"digest": cell["digest"], **_costs(config.out), _PEAK: _peak_of_training(folder, trained)}
    validation = json.loads((config.out / run_files.SCORES).read_text(encoding="utf-8"))["val"]
    result["validation"] = validation
    if not cell["tuning"]:
        result["scores"] = _score(config, cell["split"], folder / SAMPLES)
    write_scores(result, folder / RESULT)
    return result


def train_to_the_end(config: RunConfig) -> bool:
    """Train, or go on with a run that was cut off; leave a finished one.

    Returns:
        Whether there was something to train.
    """
    begun = (config.out / run_files.CONFIG).is_file()
    newest = next((s for s in read_states(config.out) if not s.damage), None) if begun else None
    if newest is not None and json.loads(newest.header["progress"])["finished"]:
        return False
    # for the record: the command that makes the same run alone
    command = ["convlora", "train", str(config.data), "--config", str(config.out / run_files.CONFIG)]
    fit(config, begun, command)
    return True


def _score(config: RunConfig, split: str, samples: Path) -> dict[str, Any]:
    """Score the best model on a split; keep the scores of each image, and the masks of a few."""
    segmenter = from_pretrained(config.out / run_files.BEST)
    record = read_record(config.out)
    report = check_dataset(
        config.data, classes=config.classes, palette=config.palette, splits=(split,), record=record
    )
    report.raise_if_errors()
    dataset = report.dataset
    pairs = dataset.splits[split]
    shown = {pair.stem for pair in pairs[:: max(1, len(pairs) // _SAMPLES)][:_SAMPLES]}

    table = ImageScores()

    def keep(pair: Pair, prediction: Prediction, of_image: dict[str, float]) -> None:
        table.add(pair.stem, of_image)
        if pair.stem in shown:
            mask = Image.fromarray(prediction.ids)
            write_whole(samples / f"{pair.stem}.png", partial(mask.save, format="PNG"))

    predictor = Predictor(segmenter, precision=config.precision)
    scores = score_pairs(predictor, dataset, pairs, new_metrics(dataset.classes), keep).compute()
    table.write(samples.with_name(IMAGES))
    return scores


def _costs(run: Path) -> dict[str, Any]:
    """Parameters, step time, memory and size of the file that is shared."""
    adapter = json.loads((run / run_files.BEST / CONFIG).read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (run / run_files.LOG).read_text(encoding="utf-8").splitlines()]
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    return {
        "trained_parameters": adapter["trained_parameters"],
        "all_parameters": adapter["all_parameters"],
        "step_seconds": statistics.median(seconds[1:] or seconds),  # the first one warms up
        "steps": rows[-1]["step"],
        "adapter_bytes": (run / run_files.BEST / TENSORS).stat().st_size,
        "device": json.loads((run / run_files.ENVIRONMENT).read_text(encoding="utf-8")).get("device"),
    }


def _peak_of_training(folder: Path, trained: bool) -> int | None:
    """Peak of the process that trained, kept: one that was cut off after that goes on with scoring alone."""
    file = folder / PEAK
    if trained:
        write_text(file, json.dumps({_PEAK: _peak_memory()}) + "\n")
    try:
        return int(json.loads(file.read_text(encoding="utf-8"))[_PEAK])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _peak_memory() -> int:
    """Largest memory in MiB: of the GPU's allocator, or of the process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() // 2**20
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset) // 2**20
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def _without_room(error: NoRoomError, precision: str) -> str:
    """A comparison has one configuration for all its runs, so that none of them can go on with another."""
    device = choose_device()
    half = advised_half(autocast_dtype(precision, device), device)
    return (
        f"{error.found} Leave the method out of --methods, or compare anew, in another --out, with "
        f"--set micro_batch=1, --set checkpointing=true, {f'--precision {half}, ' if half else ''}a smaller "
        "--image-size or a smaller --backbone."
    )


def main() -> None:
    """Run the cell of the folder that is given; a user's mistake is written to result.json as 'error'."""
    folder = Path(sys.argv[1])
    try:
        run_cell(folder)
    except ConvLoraError as error:
        cell = json.loads((folder / CELL).read_text(encoding="utf-8"))
        reason = str(error)
        if isinstance(error, NoRoomError):
            reason = _without_room(error, cell["config"]["precision"])
        write_text(folder / RESULT, json.dumps({"digest": cell["digest"], "error": reason}, indent=2) + "\n")
        print(f"error: {reason}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
