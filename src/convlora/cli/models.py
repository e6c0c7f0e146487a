"""Commands about models: methods, backbones, info, pretrain."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from convlora.cli.options import BackboneNow, Run
from convlora.errors import ConfigError
from convlora.settings import as_typed

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def methods(
    backbone: Annotated[
        str, typer.Option(help="Count the parameters on this preset.")
    ] = "facebook/sam-vit-huge",
    as_json: AsJson = False,
) -> None:
    """List the methods, their options, and how many parameters each trains."""
    import dataclasses

    from convlora.adapters import methods as all_methods
    from convlora.model import count_on_preset
    from convlora.presets import LEARNED_ROUTER

    rows: list[dict[str, Any]] = []
    for name, method in all_methods().items():
        count = count_on_preset(backbone, name)
        fields = dataclasses.fields(method)
        options = {field.name: {"default": field.default, "help": field.metadata["help"]} for field in fields}
        rows.append({"method": name, "trained": count.trainable, "share": count.share, "options": options})
    if as_json:
        learned = {"conv-lora": LEARNED_ROUTER}
        print(json.dumps({"backbone": backbone, "methods": rows, "preset_default": learned}, indent=2))
        return
    from rich.markup import escape
    from rich.table import Table

    from convlora.cli.show import print_table

    table = Table(title=f"Methods; parameters on {backbone}, binary")
    for column in ("method", "trained", "share", "options and defaults"):
        right = column in {"trained", "share"}
        fixed = right or column == "method"
        table.add_column(column, justify="right" if right else "left", no_wrap=fixed, overflow="fold")
    for row in rows:
        listed = ", ".join(f"{option}={value['default']}" for option, value in row["options"].items())
        table.add_row(row["method"], f"{row['trained']:,}", f"{100 * row['share']:.2f} %", escape(listed))
    print_table(table, least=76)
    listed = ", ".join(f"{option}={value}" for option, value in LEARNED_ROUTER.items())
    print(f"With --preset default, where none of the router's options is given, conv-lora has {listed}.")


def backbones(as_json: AsJson = False) -> None:
    """List what --backbone takes."""
    from convlora.backbone.presets import BACKBONES

    rows = [
        {
            "name": name,
            "width": spec.encoder.embed_dim,
            "blocks": spec.encoder.depth,
            "native size": spec.encoder.image_size,
            "patch": spec.encoder.patch_size,
            "where": "in this package" if name == "sam-tiny" else "Hugging Face hub, fetched once",
        }
        for name, spec in BACKBONES.items()
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.table import Table

    from convlora.cli.show import print_table

    table = Table(title="Backbones")
    for column in rows[0]:
        table.add_column(column, no_wrap=column == "name")
    for row in rows:
        units = dict.fromkeys(("native size", "patch"), " px")
        table.add_row(*(f"{value}{units.get(key, '')}" for key, value in row.items()))
    print_table(table)
    print("Also: a folder with config.json and model.safetensors, Meta's .pth, or random:NAME (a baseline).")
    print("Not SAM: unet, a U-Net from random weights (with --method full).")


def info(
    source: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, adapter folder or hub id.")],
) -> None:
    """Print what an adapter was trained on and how it scored."""
    from convlora.adapter_folder import read_config
    from convlora.checkpoint import find_adapter

    folder = find_adapter(source)
    print(json.dumps({"folder": str(folder), **read_config(folder).model_dump()}, indent=2))


def merge(
    run: Run,
    out: Annotated[Path, typer.Option(help="New folder for the merged model.")],
    backbone: BackboneNow = None,
) -> None:
    """Fold lora, ssf, bitfit or full into the backbone's weights, for prediction at no extra cost."""
    from convlora.checkpoint import MERGED
    from convlora.merging import merge_run

    merge_run(run, out, backbone)
    print(f"Wrote {out}: decoder and head, with the merged SAM in {out / MERGED}.")
    print(f"Next: {as_typed(['convlora', 'predict', str(out), 'IMAGE_OR_DIR', '--out', 'masks'])}")


def pretrain(
    out: Annotated[Path, typer.Option(help="Run folder; a run that was cut off there goes on.")],
    minutes: Annotated[float, typer.Option(help="Training time.")] = 60.0,
    scenes: Annotated[int, typer.Option(min=1, help="Scenes to generate first.")] = 12_000,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Start of all random numbers.")] = 0,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that generate scenes.")] = 2,
    teacher: Annotated[
        bool, typer.Option(help="Learn the features of an ImageNet network (EfficientNet-Lite0) as well.")
    ] = True,
    init: Annotated[
        str | None, typer.Option(help="Start from the weights of this backbone, and in its shape.")
    ] = None,
    lr: Annotated[float, typer.Option(help="Learning rate; less of it from trained weights.")] = 1e-3,
    full_from: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the time that goes to small crops first.")
    ] = 0.6,
) -> None:
    """Pretrain the small backbone on generated scenes (needs the extra 'pretrain')."""
    from convlora.adapter_folder import check_no_adapter
    from convlora.backbone.presets import SAM_TINY
    from convlora.backbone.weights import load_sam
    from convlora.output import check_folder
    from convlora.pretraining.loop import PretrainConfig, check_shape
    from convlora.pretraining.loop import pretrain as run
    from convlora.pretraining.shards import write_shards
    from convlora.pretraining.teacher import check_teacher
    from convlora.pretraining.textures import TextureBank

    if not 0 < minutes < math.inf:
        raise ConfigError(f"--minutes is {minutes:g}; it must be a finite number above 0.")
    if not 0 < lr < 1:
        raise ConfigError(f"--lr is {lr:g}; it must be above 0 and below 1.")
    check_folder(out, "--out")
    check_no_adapter(out)
    start = None if init is None else load_sam(init).sam
    spec = SAM_TINY if start is None else start.spec
    check_shape(spec, f"--init {init}")
    if teacher:
        check_teacher()
    write_shards(out / "scenes", scenes, shard_size=1000, seed=seed, workers=workers)
    config = PretrainConfig(minutes=minutes, seed=seed, teacher=teacher, lr=lr, full_from=full_from)
    folder = run(out / "scenes", out, config, spec, TextureBank(photos=True), start)
    following = as_typed(["convlora", "train", "DATA", "--out", "RUN", "--backbone", str(folder)])
    print(f"Wrote {folder}. Next: {following}")
