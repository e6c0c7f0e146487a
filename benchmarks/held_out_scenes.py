"""How well does a backbone segment generated scenes that it has never seen? Zero-shot; prints JSON.

    python benchmarks/held_out_scenes.py [--backbone sam-tiny] [--scenes 24] [--objects 4] [--seed 20000]

Scenes as `convlora pretrain` makes them, of a seed that no pretraining takes (those are small), so other
drawings by the same generators and photographs; `--scenes` of each family, and of each at most `--objects`
evenly drawn objects of at least 20 px. Prompts, scores and discs are those of one_click.py; the disc's radius
is the best one on as many scenes of the next seed.
"""

import argparse

import numpy as np
import torch

from common import parser, report
from convlora.backbone.weights import load_sam
from convlora.pretraining.scenes import FAMILIES, generate_scene
from convlora.pretraining.textures import TextureBank
from one_click import LEAST_AREA, View, evenly, scored


def scene_views(family: str, seed: int, options: argparse.Namespace, size: int) -> list[View]:
    """Scenes of a family with some of their objects."""
    textures, found = TextureBank(photos=True, seed=seed), []
    for number in range(options.scenes):
        scene = generate_scene(np.random.default_rng((seed, number)), size, textures, family)
        areas = np.bincount(scene.instances.ravel())
        drawn = evenly([i for i in range(1, len(areas)) if areas[i] >= LEAST_AREA], options.objects)
        if drawn:
            found.append(View(scene.image, np.stack([scene.instances == i for i in drawn])))
    return found


def main() -> None:
    options = parser(__doc__, backbone="sam-tiny", scenes=24, objects=4, seed=20000).parse_args()
    torch.set_num_threads(options.threads)
    sam = load_sam(options.backbone).sam.eval()
    size = sam.spec.encoder.image_size
    test, train = (
        {family: scene_views(family, options.seed + i, options, size) for family in FAMILIES} for i in (0, 1)
    )
    result = {family: scored(sam, train[family], test[family]) for family in FAMILIES}
    result["all"] = scored(sam, *([view for found in of.values() for view in found] for of in (train, test)))
    report("held-out scenes", {"options": vars(options), **result})


if __name__ == "__main__":
    main()
