"""The commands as functions: train, evaluate, load."""

from pathlib import Path
from typing import Any

from convlora.checkpoint import from_pretrained
from convlora.config import make_config
from convlora.errors import ConfigError
from convlora.evaluation import evaluate_run
from convlora.inference.predictor import Predictor, autocast_dtype, choose_device
from convlora.training.fit import fit
from convlora.training.run_folder import run_folder_is_free


def train(data: str | Path, out: str | Path, **options: Any) -> dict[str, Any]:  # noqa: ANN401  # RunConfig's
    """Fine-tune SAM on a data set; the Python form of `convlora train`.

    Args:
        data: folder with images and masks; or a .csv, COCO .json or YOLO data.yaml.
        out: new run folder.
        **options: keys of `convlora.config.RunConfig`, such as backbone, epochs, or
            method={"name": "conv-lora", "rank": 8}.

    Returns:
        Validation scores of the best model.

    Raises:
        ConvLoraError: an option, the data or the backbone is not valid; says what to change.
    """
    config = make_config({"data": data, "out": out, **options})
    run_folder_is_free(config.out, config.data)
    return fit(config)


def evaluate(
    run: str | Path, data: str | Path, split: str = "test", *, palette: str | Path | None = None
) -> dict[str, Any]:
    """Score a model on a split at native resolution; the Python form of `convlora evaluate`.

    Args:
        run: run folder, adapter folder or hub id.
        data: data folder or file.
        split: train, val or test.
        palette: colours of the classes, for colour masks.

    Returns:
        Flat scores (docs/data.md), with 'split', 'checkpoint' and 'n_images'.

    Raises:
        ConvLoraError: an argument, the model or the data is not valid; says what to change.
    """
    colours = None if palette is None else Path(_path(palette, "palette"))
    return evaluate_run(_path(run, "run"), Path(_path(data, "data")), split, palette=colours)


def load(run: str | Path, *, device: str | None = None, precision: str = "auto") -> Predictor:
    """Load a fine-tuned model for prediction.

    Args:
        run: run folder, adapter folder or hub id.
        device: by default a GPU if there is one.
        precision: auto, fp32, bf16 or fp16.

    Raises:
        ConvLoraError: an argument or the model is not valid; says what to change.
    """
    autocast_dtype(precision, choose_device(device))  # mistakes show before the model is loaded
    return Predictor(from_pretrained(_path(run, "run")), device, precision)


def _path(value: object, name: str) -> str | Path:
    if isinstance(value, str | Path) and str(value):
        return value
    raise ConfigError(f"{name} is {value!r}; it must be a path, as text or pathlib.Path.")
