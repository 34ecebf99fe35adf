"""fedpatchcore evaluate: metrics of a model on a labelled test set."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fl.cli.terminal import Device, Weights, console, model_options


def evaluate(
    model: Annotated[Path, typer.Argument(help="a model.safetensors")],
    data: Annotated[Path, typer.Option(help="root of a dataset")],
    kind: Annotated[str, typer.Option(help="folder (MVTec layout) or autovi")] = "folder",
    objects: Annotated[str, typer.Option(help="comma-separated, or all")] = "all",
    out: Annotated[Path | None, typer.Option(help="a JSON file for the figures")] = None,
    weights: Weights = None,
    device: Device = "",
) -> None:
    """Image and pixel figures of a model on a labelled test set."""
    from fl.results.predictions import evaluate_model
    from src.data import open_dataset

    test = open_dataset(kind, data, objects, "test")
    figures = evaluate_model(model, test, model_options(device, weights))
    table = Table("", *figures["objects"], "mean", box=None)
    columns = [_named(f) for f in (*figures["objects"].values(), figures["mean"])]
    for key in columns[-1]:
        table.add_row(key, *(f"{column[key]:.4f}" if key in column else "-" for column in columns))
    console.print(table)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=2) + "\n")


def _named(figures: dict, prefix: str = "") -> dict[str, float]:
    named: dict[str, float] = {}
    for key, value in figures.items():
        named |= _named(value, f"{key}@") if isinstance(value, dict) else {prefix + key: value}
    return named
