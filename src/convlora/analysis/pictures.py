"""Pictures of an analysis."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convlora.analysis.result import Analysis
from convlora.figures import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUTING, DISTANCES, PROBE = "routing.png", "attention.png", "probe.png"


def draw_routing(found: Analysis, out: Path) -> None:
    """Shares of the scales by layer and by image."""
    write_figure(out / ROUTING, (11, 5), partial(_routing, found=found))


def draw_distances(found: Analysis, out: Path) -> None:
    """Distance of every head by block, before and after."""
    write_figure(out / DISTANCES, (8, 4.5), partial(_distances, found=found))


def draw_probe(found: Analysis, out: Path) -> None:
    """IoU of the probe by class, before and after."""
    write_figure(out / PROBE, (8, 4.5), partial(_probe, found=found))


def _routing(figure: "Figure", found: Analysis) -> None:
    names = list(found.routing)
    shares = np.array([found.routing[name] for name in names])  # (layers, images, M)
    left, right = figure.subplots(1, 2)
    for axes, table, labels, title in (
        (
            left,
            shares.mean(1),
            [name.removeprefix("blocks.") for name in names],
            "by layer, mean over images",
        ),
        (right, shares.mean(0), found.images, "by image, mean over layers"),
    ):
        image = axes.imshow(table, vmin=0, vmax=1, aspect="auto", cmap="viridis")
        axes.set_xticks(range(len(found.scales)), [str(scale) for scale in found.scales])
        axes.set_yticks(range(len(labels)), [label[-24:] for label in labels], fontsize=6)
        axes.set_xlabel("scale of the expert")
        axes.set_title(title)
    figure.colorbar(image, ax=[left, right], label="share")


def _distances(figure: "Figure", found: Analysis) -> None:
    axes: Any = figure.subplots()
    for offset, when, marker in ((-0.12, "before", "o"), (0.12, "after", "x")):
        blocks = found.distances[when]
        points = [(block + offset, value) for block, heads in blocks.items() for value in heads]
        if points:
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, s=14, marker=marker, label=f"{when} tuning")
    for block, side in found.windows.items():
        if side == 0:
            axes.axvspan(block - 0.4, block + 0.4, alpha=0.12, color="grey")
    axes.set_xlabel("block (grey: global attention)")
    axes.set_ylabel("mean attention distance, pixels")
    axes.set_xticks(sorted(found.windows))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2)


def _probe(figure: "Figure", found: Analysis) -> None:
    axes: Any = figure.subplots()
    width = 0.2
    known = sorted(found.probes["after"]["blocks"].iou)
    bars = [(when, place) for place in ("blocks", "embedding") for when in ("before", "after")]
    for i, (when, place) in enumerate(bars):
        iou = found.probes[when][place].iou
        x = [position + (i - 1.5) * width for position in range(len(known))]
        place_name = "last block" if place == "blocks" else "embedding"
        axes.bar(x, [iou[c] for c in known], width, label=f"{place_name}, {when}")
    axes.set_xticks(range(len(known)), [found.classes[c] for c in known], rotation=30, ha="right")
    axes.set_ylabel("IoU of a linear probe")
    axes.set_ylim(0, 1)
    axes.legend(fontsize=8)
