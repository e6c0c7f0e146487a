"""Commands about models: methods, backbones, info, pretrain."""

import json
from pathlib import Path
from typing import Annotated

import typer


def methods(
    backbone: Annotated[
        str, typer.Option(help="Count the parameters on this preset.")
    ] = "facebook/sam-vit-huge",
) -> None:
    """List the methods, their options, and how many parameters each trains."""
    import dataclasses

    from rich.console import Console
    from rich.table import Table

    from convlora.adapters import methods as all_methods
    from convlora.model import count_on_preset

    table = Table(title=f"Methods; parameters on {backbone}, binary")
    for column in ("method", "trained", "share", "options and defaults"):
        right = column in {"trained", "share"}
        table.add_column(column, justify="right" if right else "left", no_wrap=right or column == "method")
    for name, method in all_methods().items():
        count = count_on_preset(backbone, name)
        fields = dataclasses.fields(method)  # type: ignore[arg-type]  # every method is a dataclass
        options = ", ".join(f"{field.name}={field.default}" for field in fields)
        table.add_row(name, f"{count.trainable:,}", f"{100 * count.share:.2f} %", options)
    Console().print(table)


def backbones() -> None:
    """List what --backbone takes."""
    from rich.console import Console
    from rich.table import Table

    from convlora.backbone.presets import BACKBONES

    table = Table(title="Backbones")
    for column in ("name", "width", "blocks", "native size", "patch", "where"):
        table.add_column(column, no_wrap=column == "name")
    for name, spec in BACKBONES.items():
        encoder = spec.encoder
        where = "in this package" if name == "sam-tiny" else "Hugging Face hub, fetched once"
        size, patch = f"{encoder.image_size} px", f"{encoder.patch_size} px"
        table.add_row(name, str(encoder.embed_dim), str(encoder.depth), size, patch, where)
    Console().print(table)
    print("Also: a folder with config.json and model.safetensors, Meta's .pth, or random:NAME (a baseline).")


def info(
    source: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, adapter folder or hub id.")],
) -> None:
    """Print what an adapter was trained on and how it scored."""
    from convlora.checkpoint import find_adapter, read_adapter_config

    folder = find_adapter(source)
    print(json.dumps({"folder": str(folder), **read_adapter_config(folder)}, indent=2))


def pretrain(
    out: Annotated[Path, typer.Option(help="Run folder; a run that was cut off there goes on.")],
    minutes: Annotated[float, typer.Option(help="Training time.")] = 60.0,
    scenes: Annotated[int, typer.Option(help="Scenes to generate first.")] = 12_000,
    seed: Annotated[int, typer.Option(help="Start of all random numbers.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes that generate scenes.")] = 2,
) -> None:
    """Pretrain the small backbone from nothing on generated scenes (needs the extra 'pretrain')."""
    from convlora.pretraining.loop import PretrainConfig
    from convlora.pretraining.loop import pretrain as run
    from convlora.pretraining.shards import write_shards

    write_shards(out / "scenes", scenes, shard_size=1000, seed=seed, workers=workers)
    folder = run(out / "scenes", out, PretrainConfig(minutes=minutes, seed=seed))
    print(f"Wrote {folder}. Next: convlora train DATA --out RUN --backbone {folder}")
