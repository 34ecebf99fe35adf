"""fedpatchcore evaluate: metrics of a model on a labelled test set."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fl.cli.terminal import Device, Weights, console, model_options


def evaluate(
    model: Annotated[Path, typer.Argument(help="a model.safetensors file")],
    data: Annotated[Path, typer.Option(help="folder of the data set")],
    kind: Annotated[str, typer.Option(help="layout: folder (MVTec AD), autovi or visa")] = "folder",
    objects: Annotated[str, typer.Option(help="objects, comma-separated, or all")] = "all",
    out: Annotated[Path | None, typer.Option(help="JSON file to write the metrics to")] = None,
    weights: Weights = None,
    device: Device = "",
) -> None:
    """Compute metrics of a model on a labelled test set."""
    from fl.results.predictions import evaluate_model
    from src.data import open_dataset

    test = open_dataset(kind, data, objects, "test")
    metrics = evaluate_model(model, test, model_options(device, weights))
    table = Table("", *metrics["objects"], "mean", box=None)
    columns = [_flatten(part) for part in (*metrics["objects"].values(), metrics["mean"])]
    for key in columns[-1]:
        table.add_row(key, *(f"{column[key]:.4f}" if key in column else "-" for column in columns))
    console.print(table)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(metrics, indent=2) + "\n")


def _flatten(metrics: dict, prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        flat |= _flatten(value, f"{key}@") if isinstance(value, dict) else {prefix + key: value}
    return flat
