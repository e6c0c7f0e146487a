"""The text that stands beside the pictures: what was measured, and how to read it."""

from collections.abc import Iterator

import numpy as np

from convlora.analysis.result import Analysis

_ROUTING = (
    "Left, the share of each scale in every layer: of the windows that chose it, or its mean weight "
    "in soft routing. Right, the same by image. A row of one bright cell means that the layer sends "
    "everything to one scale; rows that differ between images mean that the choice depends on the "
    "content. With the official routing and one expert per sample the task does not train the gate, "
    "which only balances the load: a preference here is no evidence that the scale helps."
)
_DISTANCES = (
    "How far, in pixels of the model's input, a position looks on average: each point is a head. "
    "Small is local. In a windowed block the distance is bounded by the window. One run shows no "
    "spread: compare runs with several seeds before reading anything into a change."
)
_PROBE = (
    "Logistic regression from the features at each position to the class there, fitted on training "
    "images and scored on these. If it rises after tuning, the classes are easier to read off the "
    "features than before: tuning has put semantics there. The encoder was tuned on the training "
    "images, so only scores on images outside of the training count."
)


def how_to_read(found: Analysis) -> str:
    """Markdown with the main numbers and what they can and cannot show."""
    parts = [*_opening(found), *_routing(found), *_distances(found), *_probe(found)]
    return "\n".join(parts) + "\n"


def _opening(found: Analysis) -> Iterator[str]:
    yield f"# What {found.method} did to the encoder"
    yield ""
    yield f"{len(found.images)} images; all numbers are in analysis.json."


def _routing(found: Analysis) -> Iterator[str]:
    yield "\n## Which scale was chosen\n"
    if not found.routing:
        yield f"{found.method} has no gate, so there is nothing to choose."
        return
    shares = np.array(list(found.routing.values()))  # (layers, images, M)
    total = shares.mean((0, 1))
    listed = ", ".join(f"{s}: {100 * share:.0f} %" for s, share in zip(found.scales, total, strict=True))
    yield "![routing](routing.png)\n"
    yield f"Share of the scales over all layers and images: {listed}.\n"
    yield _ROUTING
    spread = float(shares.std(axis=1).mean())
    yield f"\nStandard deviation of a share between images, mean over layers and scales: {spread:.3f}."


def _distances(found: Analysis) -> Iterator[str]:
    yield "\n## Mean attention distance\n"
    if not found.distances["after"]:
        yield f"Not measured: {found.method} runs the blocks in its own way."
        return
    yield "![attention](attention.png)\n"
    yield "| block | attention | before, mean of heads | after | change |\n|---|---|---|---|---|"
    for block, side in found.windows.items():
        before, after = (float(np.mean(found.distances[when][block])) for when in ("before", "after"))
        kind = "global" if side == 0 else f"windows of {side} px"
        yield f"| {block} | {kind} | {before:.1f} px | {after:.1f} px | {after - before:+.1f} px |"
    yield f"\n{_DISTANCES}"


def _probe(found: Analysis) -> Iterator[str]:
    yield "\n## Linear probe: are the classes in the features?\n"
    yield "![probe](probe.png)\n"
    yield "| features | accuracy before | after | mean IoU before | after |\n|---|---|---|---|---|"
    for place, name in (("blocks", "last block"), ("embedding", "embedding (neck)")):
        before, after = (found.probes[when][place] for when in ("before", "after"))
        yield (
            f"| {name} | {before.accuracy:.3f} | {after.accuracy:.3f} | {before.mean_iou:.3f} | "
            f"{after.mean_iou:.3f} |"
        )
    yield f"\n{_PROBE}"
