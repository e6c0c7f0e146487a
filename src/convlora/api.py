"""The commands as functions: train, evaluate, compare, load."""

import warnings
from pathlib import Path
from typing import Any

from convlora.checkpoint import from_pretrained
from convlora.comparison.compare import compare as run_comparison
from convlora.comparison.engines import choose_engine
from convlora.comparison.settings import make_settings, refuse_of_a_run
from convlora.config import make_config
from convlora.errors import ConfigError
from convlora.evaluation import evaluate_run
from convlora.inference.engine import choose_computing
from convlora.inference.predictor import Predictor
from convlora.inference.tiles import choose_tiles
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


def compare(
    data: str | Path,
    out: str | Path,
    methods: str = "all",
    *,
    seeds: int = 3,
    train_sizes: str = "all",
    metrics: str = "mean_dice_foreground,image_mean_dice_foreground,mean_iou",
    reference: str | None = None,
    split: str = "test",
    tune_lr: bool = False,
    first_seed: int = 0,
    ray: str | None = None,
    **options: Any,  # noqa: ANN401  # RunConfig's
) -> dict[str, Any]:
    """Compare methods on a data set; the Python form of `convlora compare`.

    Args:
        data: folder or file.
        out: folder of the comparison; the same call goes on with it.
        methods: 'all', or names with options: 'lora,conv-lora:rank=8,unet'.
        seeds: runs of each method.
        train_sizes: numbers of training images, such as '8,16,all'.
        metrics: scores in the tables.
        reference: method that the others are compared with; lora if it is there.
        split: that is scored.
        tune_lr: whether to choose each method's learning rate on the validation split.
        first_seed: seed of the first run; fresh seeds confirm what earlier ones have suggested.
        ray: address of a Ray cluster, or 'local'; by default the runs are made here, one by one.
        **options: keys of `convlora.config.RunConfig` that all runs share; method, seed and train_images, in
            which the runs differ, are refused.

    Returns:
        Content of results.json (docs/compare.md).

    Raises:
        ConvLoraError: an argument, the data or the backbone is not valid. A run that fails is reported in the
            result instead.
    """
    refuse_of_a_run(options)
    config = make_config({"data": data, "out": out, **options})
    settings = make_settings(
        methods,
        seeds,
        train_sizes,
        reference=reference,
        metrics=metrics,
        split=split,
        tune_lr=tune_lr,
        first_seed=first_seed,
    )
    return run_comparison(config, settings, choose_engine(ray)).to_dict()


def evaluate(
    run: str | Path,
    data: str | Path,
    split: str = "test",
    *,
    palette: str | Path | None = None,
    backbone: str | Path | None = None,
    device: str | None = None,
    precision: str = "auto",
    engine: str = "torch",
    tile: int | None = None,
    tile_overlap: int | None = None,
) -> dict[str, Any]:
    """Score a model on a split at native resolution; the Python form of `convlora evaluate`.

    Args:
        run: run folder, adapter folder or hub id.
        data: data folder or file.
        split: train, val or test.
        palette: colours of the classes, for colour masks.
        backbone: where the backbone is now, if not where it was in training.
        device: by default a GPU if there is one.
        precision: auto, fp32, bf16 or fp16; warns of one that is slow on this processor.
        engine: torch or openvino.
        tile: side of the tiles that larger images are cut into, in pixels of the image.
        tile_overlap: pixels over which tiles fade into each other, by default a quarter of `tile`.

    Returns:
        Flat scores (docs/data.md), with 'split', 'checkpoint', 'engine' and 'n_images'.

    Raises:
        ConvLoraError: an argument, the model or the data is not valid; says what to change.
    """
    colours = None if palette is None else Path(_path(palette, "palette"))
    return evaluate_run(
        _path(run, "run"),
        Path(_path(data, "data")),
        split,
        palette=colours,
        backbone=_backbone(backbone),
        device=device,
        precision=precision,
        engine=engine,
        tile=tile,
        tile_overlap=tile_overlap,
    )


def load(
    run: str | Path,
    *,
    backbone: str | Path | None = None,
    device: str | None = None,
    precision: str = "auto",
    engine: str = "torch",
    tile: int | None = None,
    tile_overlap: int | None = None,
) -> Predictor:
    """Load a fine-tuned model for prediction.

    Args:
        run: run folder, adapter folder or hub id.
        backbone: where the backbone is now, if not where it was in training.
        device: by default a GPU if there is one.
        precision: auto, fp32, bf16 or fp16; warns of one that is slow on this processor.
        engine: torch or openvino.
        tile: see `evaluate`, as tile_overlap.
        tile_overlap: see there.

    Raises:
        ConvLoraError: an argument or the model is not valid; says what to change.
    """
    slow = choose_computing(engine, device, precision).warning  # mistakes show before the model is loaded
    choose_tiles(tile, tile_overlap)
    if slow:
        warnings.warn(slow, stacklevel=2)
    segmenter = from_pretrained(_path(run, "run"), _backbone(backbone))
    return Predictor(segmenter, device, precision, engine, tile=tile, tile_overlap=tile_overlap)


def _backbone(value: str | Path | None) -> str | None:
    return None if value is None else str(_path(value, "backbone"))


def _path(value: object, name: str) -> str | Path:
    if isinstance(value, str | Path) and str(value):
        return value
    raise ConfigError(f"{name} is {value!r}; it must be a path, as text or pathlib.Path.")
