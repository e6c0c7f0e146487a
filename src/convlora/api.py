"""The commands of models as functions: train, evaluate, predict, compare, analyze, merge; and load.

Each imports what it needs when it is called: `load` needs no training, and `predict` tells of mistakes in
images and places before torch is loaded. Those of data are in `api_data`.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convlora.arguments import as_backbone, as_inputs, as_location, as_optional_path, as_path
from convlora.errors import ConvLoraError
from convlora.settings import check_kind

if TYPE_CHECKING:
    from convlora.analysis.result import Analysis
    from convlora.inference.files import Outcome
    from convlora.inference.jobs import Existing
    from convlora.inference.predictor import Predictor


def train(
    data: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    **options: Any,  # noqa: ANN401  # RunConfig's
) -> dict[str, Any]:
    """Fine-tune SAM on a data set; the Python form of `convlora train`.

    Args:
        data: folder with images and masks; or a .csv, COCO .json or YOLO data.yaml.
        out: new run folder; or that of the run to go on with.
        resume: go on with the run in `out`, to the same weights as if it had not been cut off. Options that
            are not given are those that it was started with; others than these are refused, but for
            micro_batch, checkpointing, workers and previews.
        **options: keys of `convlora.config.RunConfig`, such as backbone, epochs, or
            method={"name": "conv-lora", "rank": 8}.

    Returns:
        Validation scores of the best model.

    Raises:
        ConvLoraError: an option, the data or the backbone is not valid; says what to change.
    """
    from convlora.config import check_same, load_config, make_config
    from convlora.training.fit import fit
    from convlora.training.run_folder import check_run_folder_is_free, record_of

    check_kind("resume", resume, bool, "True or False")
    asked = {"data": data, "out": out, **options}
    if resume:
        record = record_of(as_path(out, "out"))
        config = load_config(record, asked)
        check_same(config, load_config(record), config.out)
    else:
        config = make_config(asked)
        check_run_folder_is_free(config.out, config.data)
    return fit(config, resume)


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
    from convlora.comparison.compare import compare as run_comparison
    from convlora.comparison.engines import choose_engine
    from convlora.comparison.settings import make_settings, refuse_of_a_run
    from convlora.config import make_config

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
    per_image: str | Path | None = None,
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
        per_image: .csv for the scores of each image.
        palette: colours of the classes, for colour masks.
        backbone: where the backbone is now, if not where it was in training.
        device: by default a GPU if there is one.
        precision: auto, fp32, bf16 or fp16; warns of one that is slow on this processor.
        engine: torch or openvino.
        tile: side of the tiles that larger images are cut into, in pixels of the image.
        tile_overlap: pixels over which tiles fade into each other, by default a quarter of `tile`.

    Returns:
        Flat scores (docs/data.md), with 'split', 'data', 'checkpoint', 'engine' and 'n_images'.

    Raises:
        ConvLoraError: an argument, the model or the data is not valid; says what to change.
    """
    from convlora.evaluation import evaluate_run

    return evaluate_run(
        as_location(run, "run"),
        as_path(data, "data"),
        split,
        per_image=as_optional_path(per_image, "per_image"),
        palette=as_optional_path(palette, "palette"),
        backbone=as_backbone(backbone),
        device=device,
        precision=precision,
        engine=engine,
        tile=tile,
        tile_overlap=tile_overlap,
    )


def predict(
    run: str | Path,
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    overlay: bool = False,
    probabilities: bool = False,
    geotiff: bool = False,
    existing: "Existing" = "refuse",
    backbone: str | Path | None = None,
    device: str | None = None,
    precision: str = "auto",
    engine: str = "torch",
    tile: int | None = None,
    tile_overlap: int | None = None,
) -> "Outcome":
    """Write the masks of images as files; the Python form of `convlora predict`.

    `load(run).predict(image)` gives one mask as an array instead.

    Args:
        run: run folder, adapter folder or hub id.
        images: an image, a folder of images, or several of both.
        out: folder for NAME.png, (H, W) uint8 class ids at the image's own size.
        overlay: also NAME_overlay.png, the mask over the image.
        probabilities: also NAME_probabilities.npy, (K, H, W) float16.
        geotiff: also NAME.tif, the mask with the georeference of the image (extra 'geo').
        existing: 'refuse' outputs that are there, 'skip' them, or 'overwrite' them.
        backbone: see `evaluate`, as all that follow.
        device: see there.
        precision: see there.
        engine: see there.
        tile: see there.
        tile_overlap: see there.

    Returns:
        What was written and skipped, and the `failures`: images that cannot be read stop no others, and are
        told in a warning.

    Raises:
        ConvLoraError: an argument or the model is not valid, or the work ended early, as on a full disk; what
            was written is kept, and existing='skip' goes on (after 'overwrite', the same call).
        KeyboardInterrupt: likewise.
    """
    from convlora.inference.jobs import plan_jobs

    for name, value in {"overlay": overlay, "probabilities": probabilities, "geotiff": geotiff}.items():
        check_kind(name, value, bool, "True or False")
    inputs = as_inputs(images)
    place = as_path(out, "out")
    jobs = plan_jobs(
        inputs, place, overlay=overlay, probabilities=probabilities, geotiff=geotiff, existing=existing
    )
    # below what needs no torch: mistakes show at once
    from convlora.inference.files import run_jobs

    predictor = load(
        run,
        backbone=backbone,
        device=device,
        precision=precision,
        engine=engine,
        tile=tile,
        tile_overlap=tile_overlap,
    )
    outcome = run_jobs(predictor, jobs)
    if outcome.interrupted:
        raise KeyboardInterrupt
    if outcome.stopped:
        # what is left of 'overwrite' are older files, which 'skip' would keep as if they were new
        skip = "Go on with the same call and existing='skip'."
        again = "Make the same call again." if existing == "overwrite" else skip
        raise ConvLoraError(f"{outcome.stopped} {again}")
    if outcome.failures:
        failed = f"{len(outcome.failures)} of {len(jobs)} images"
        warnings.warn(f"{failed} could not be predicted: {outcome.failures[0][1]}", stacklevel=2)
    return outcome


def analyze(
    run: str | Path,
    data: str | Path,
    out: str | Path | None = None,
    *,
    split: str = "test",
    images: int = 32,
    palette: str | Path | None = None,
    backbone: str | Path | None = None,
    device: str | None = None,
) -> "Analysis":
    """What tuning did to the encoder; the Python form of `convlora analyze`.

    Args:
        run: run folder, adapter folder or hub id.
        data: the data it was trained on, or other data of the same classes.
        out: folder for the numbers, the pictures and how to read them; by default RUN/analysis.
        split: whose images are looked at.
        images: at most so many of a split; 2 or more.
        palette: colours of the classes, for colour masks.
        backbone: see `evaluate`.
        device: see there.

    Returns:
        Chosen scales, mean attention distances and scores of the linear probe.

    Raises:
        ConvLoraError: an argument, the model or the data is not valid, or the extra 'analyze' is missing.
    """
    from convlora.analysis import analyze as analysis

    return analysis.analyze(
        as_location(run, "run"),
        as_path(data, "data"),
        analysis.place_of(as_location(run, "run"), as_optional_path(out, "out")),
        split=split,
        images=images,
        palette=as_optional_path(palette, "palette"),
        backbone=as_backbone(backbone),
        device=device,
    )


def merge(run: str | Path, out: str | Path, *, backbone: str | Path | None = None) -> Path:
    """Fold lora, ssf, bitfit or full into the backbone's weights; the Python form of `convlora merge`.

    Args:
        run: run folder, adapter folder or hub id.
        out: new folder for the merged model.
        backbone: see `evaluate`.

    Returns:
        `out`, which `load`, `evaluate` and `predict` take.

    Raises:
        ConvLoraError: the method has no merged form, or `out` or the model is not valid.
    """
    from convlora.merging import merge_run

    return merge_run(as_location(run, "run"), as_path(out, "out"), as_backbone(backbone))


def load(
    run: str | Path,
    *,
    backbone: str | Path | None = None,
    device: str | None = None,
    precision: str = "auto",
    engine: str = "torch",
    tile: int | None = None,
    tile_overlap: int | None = None,
) -> "Predictor":
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
    from convlora.checkpoint import from_pretrained
    from convlora.inference.engine import choose_computing
    from convlora.inference.predictor import Predictor
    from convlora.inference.tiles import choose_tiles

    slow = choose_computing(engine, device, precision).warning  # mistakes show before the model is loaded
    choose_tiles(tile, tile_overlap)
    if slow:
        warnings.warn(slow, stacklevel=2)
    segmenter = from_pretrained(as_location(run, "run"), as_backbone(backbone))
    return Predictor(segmenter, device, precision, engine, tile=tile, tile_overlap=tile_overlap)
