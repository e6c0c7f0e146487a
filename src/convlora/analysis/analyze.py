"""Compare an encoder before and after tuning on a user's data; pictures, numbers, and how to read them."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convlora.analysis.attention import watch_distances
from convlora.analysis.pictures import DISTANCES, PROBE, ROUTING, draw_distances, draw_probe, draw_routing
from convlora.analysis.probe import Labelled, Probe, check_probe, linear_probe
from convlora.analysis.result import Analysis
from convlora.analysis.routing import routed_layers, watch_routing
from convlora.analysis.text import how_to_read
from convlora.backbone.image_encoder import Block, ImageEncoder
from convlora.checkpoint import find_adapter, from_pretrained, load_backbone
from convlora.data.check import check_dataset
from convlora.data.gather import gathered
from convlora.data.images import read_image
from convlora.data.labels import read_label
from convlora.data.layout import DataSet, Pair
from convlora.data.progress import show_progress
from convlora.data.report import Problem
from convlora.data.splits import check_unseen, read_record
from convlora.data.transforms import Geometry, apply_image, apply_mask, fit_geometry, normalize
from convlora.errors import ConfigError
from convlora.evaluation import check_same_data, check_split
from convlora.figures import check_matplotlib
from convlora.inference.device import choose_device
from convlora.model import Segmenter
from convlora.output import check_folder, check_new, make_folder, write_text
from convlora.settings import check_kind

JSON, README = "analysis.json", "README.md"


def place_of(run: str | Path, out: Path | None) -> Path:
    """Folder of the results: `out`, or RUN/analysis.

    Raises:
        ConfigError: `out` is not given and `run` is no folder here.
    """
    if out is None and not Path(run).is_dir():
        raise ConfigError(f"{run} is no folder here, so --out must say where the results go.")
    return out or Path(run) / "analysis"


def analyze(
    run: str | Path,
    data: Path,
    out: Path,
    *,
    split: str = "test",
    images: int = 32,
    palette: Path | None = None,
    backbone: str | None = None,
    device: str | None = None,
    say: Callable[[str], None] = print,
) -> Analysis:
    """Analyse a fine-tuned model.

    Args:
        run: run folder, adapter folder or hub id.
        data: the data it was trained on, or other data with the same classes.
        out: folder for analysis.json, pictures and README.md.
        split: whose images are looked at, and on which the probe is scored; it is fitted on 'train'.
        images: at most so many of each split, evenly spaced; 2 or more.
        palette: colours of the classes, for colour masks.
        backbone: where the backbone is now, if not where it was in training.
        device: where to compute.
        say: is told what is done.

    Raises:
        ConfigError, DataError, WeightsError: with what to change.
        MissingExtraError: matplotlib or scikit-learn is not installed.
    """
    check_probe()
    check_matplotlib("convlora analyze", "analyze")
    check_split(split)
    check_kind("images", images, int, "a whole number, 2 or more")
    if images < 2:
        raise ConfigError(f"images is {images}; it must be 2 or more (--images).")
    _check_place(out)
    folder = find_adapter(run)
    model = from_pretrained(folder, backbone)
    if not isinstance(model, Segmenter):
        raise ConfigError(f"{folder} holds a {model.config.backbone}; only SAM's encoder can be analysed.")
    dataset = _dataset(run, data, list(model.config.classes), split, palette, say)
    for problem in _seen_in_training(run, folder, dataset, split):
        say(f"warning: {problem}")
    look = _Look(dataset, split, images, model, choose_device(device))
    found = Analysis(model.config.method, list(dataset.classes), [pair.stem for pair in look.pairs(split)])
    before = load_backbone(model.config.backbone, folder, backbone).sam.image_encoder.eval()
    look.windows_of(before, found)
    if routed_layers(model.encoder):
        say("routing")
        look.routing(model.encoder, found)
    for when, encoder in (("before", before), ("after", model.encoder)):
        say(f"attention distance and probe, {when} tuning")
        encoder.to(look.device)
        found.distances[when] = look.distances(encoder)
        found.probes[when] = look.probe(encoder)
    _write(found, out)
    return found


def _check_place(out: Path) -> None:
    """Refuse to write over files of the user's own; those of an analysis are written anew."""
    check_folder(out, "--out")
    if not (out / JSON).is_file():
        check_new([out / name for name in (README, ROUTING, DISTANCES, PROBE)], "Give another --out.")


def _dataset(
    run: str | Path,
    data: Path,
    classes: list[str],
    split: str,
    palette: Path | None,
    say: Callable[[str], None],
) -> DataSet:
    wanted = tuple(dict.fromkeys(("train", split)))
    record = read_record(Path(run))
    report = check_dataset(
        data, classes=classes, palette=palette, splits=wanted, record=record, progress=show_progress
    )
    report.raise_if_errors()
    for line in gathered(report.warnings):
        say(f"warning: {line}")
    return report.dataset


def _seen_in_training(run: str | Path, folder: Path, dataset: DataSet, split: str) -> Iterator[Problem]:
    """Warnings of images that the probe would be scored on, but the run was, or may have been, trained on."""
    record = read_record(Path(run))
    if record is None:
        yield from check_same_data(str(run), folder, dataset) if dataset.by_seed else ()
        return
    fix = "Remove them; or take the scores of the probe for those on training images."
    for problem in check_unseen(dataset, split, record):
        yield replace(problem, severity="warning", fix=fix)


class _Look:
    """Sends images through encoders.

    Args:
        dataset: checked data.
        split: whose images are looked at.
        count: at most so many images of a split.
        model: tells size and way of resizing.
        device: where to compute.
    """

    def __init__(
        self, dataset: DataSet, split: str, count: int, model: Segmenter, device: torch.device
    ) -> None:
        self.dataset, self.split, self.count = dataset, split, count
        self.config, self.device = model.config, device
        self.patch = model.encoder.spec.patch_size

    def pairs(self, split: str) -> list[Pair]:
        """Evenly spaced pairs of a split."""
        pairs = self.dataset.splits[split]
        places = np.linspace(0, len(pairs) - 1, min(self.count, len(pairs))).round().astype(int)
        return [pairs[i] for i in places]

    def windows_of(self, encoder: ImageEncoder, found: Analysis) -> None:
        """Note the sides of the windows."""
        for i, block in enumerate(encoder.blocks):
            assert isinstance(block, Block)
            found.windows[i] = block.window_size * self.patch

    @torch.no_grad()
    def routing(self, encoder: ImageEncoder, found: Analysis) -> None:
        """Note the choices of the gates."""
        encoder.to(self.device)
        with watch_routing(encoder) as choices:
            for pair in self.pairs(self.split):
                encoder(self._image(pair)[0])
        found.scales = list(choices.scales)
        found.routing = {name: shares.tolist() for name, shares in choices.stacked().items()}

    @torch.no_grad()
    def distances(self, encoder: ImageEncoder) -> dict[int, list[float]]:
        """Mean attention distance of each head of each block."""
        side = self.config.image_size // self.patch
        inside = torch.ones(side, side, dtype=torch.bool)
        with watch_distances(encoder, inside) as found:
            for pair in self.pairs(self.split):
                image, geometry = self._image(pair)
                inside[:] = False
                height, width = (-(-length // self.patch) for length in geometry.resized)
                inside[:height, :width] = True
                encoder(image)
        return {block: torch.stack(rows).mean(0).tolist() for block, rows in found.items()}

    def probe(self, encoder: ImageEncoder) -> dict[str, Probe]:
        """Linear probe of the last block's features and of the embedding."""
        train, test = self._features(encoder, "train"), self._features(encoder, self.split)
        return {place: linear_probe(train[place], test[place]) for place in train}

    @torch.no_grad()
    def _features(self, encoder: ImageEncoder, split: str) -> dict[str, list[Labelled]]:
        found: dict[str, list[Labelled]] = {"blocks": [], "embedding": []}
        kept: list[Tensor] = []
        hook = encoder.neck.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        try:
            for pair in self.pairs(split):
                image, geometry = self._image(pair)
                embedding = encoder(image)
                mask = torch.from_numpy(read_label(pair.mask, self.dataset.encoding))
                middle = self.patch // 2
                labels = apply_mask(mask, geometry)[middle :: self.patch, middle :: self.patch].numpy()
                for place, features in (("blocks", kept.pop()), ("embedding", embedding)):
                    rows = features[0].flatten(1).T.float().cpu().numpy()
                    found[place].append((rows, labels.ravel()))
        finally:
            hook.remove()
        return found

    def _image(self, pair: Pair) -> tuple[Tensor, Geometry]:
        picture = torch.from_numpy(read_image(pair.image)).permute(2, 0, 1)
        geometry = fit_geometry(
            (picture.shape[1], picture.shape[2]), self.config.image_size, self.config.resize
        )
        return normalize(apply_image(picture, geometry))[None].to(self.device), geometry


def _write(found: Analysis, out: Path) -> None:
    make_folder(out)
    write_text(out / JSON, json.dumps(found.to_dict(), indent=2) + "\n")
    pictures: Sequence[tuple[bool, Callable[[Analysis, Path], None]]] = (
        (bool(found.routing), draw_routing),
        (bool(found.distances["after"]), draw_distances),
        (True, draw_probe),
    )
    for there, draw in pictures:
        if there:
            draw(found, out)
    write_text(out / README, how_to_read(found))
