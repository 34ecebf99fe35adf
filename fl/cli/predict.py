"""fedpatchcore predict: score images with a model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fl.cli.terminal import Device, Weights, console, model_options

SHOWN = 20  # highest scores to print; scores.csv has all


def predict(
    model: Annotated[Path, typer.Argument(help="a model.safetensors file")],
    images: Annotated[list[Path], typer.Argument(help="image files or folders")],
    out: Annotated[Path, typer.Option(help="folder for maps, overlays and scores.csv")],
    object_: Annotated[
        str | None, typer.Option("--object", help="object whose bank to use, if there are several")
    ] = None,
    weights: Weights = None,
    device: Device = "",
) -> None:
    """Score images with a model.

    It writes anomaly maps, overlays and scores.csv.
    """
    from fl.results.predictions import find_images, write_predictions
    from src.models import PatchCore

    detector = PatchCore.load(model, bank=object_, **model_options(device, weights))
    rows = write_predictions(detector, find_images(images), out)
    table = Table("image", "score", "anomalous", box=None)
    for row in sorted(rows, key=lambda row: -row["score"])[:SHOWN]:
        verdict = {True: "yes", False: "no", None: "-"}[row.get("anomalous")]
        table.add_row(row["image"], f"{row['score']:.3f}", verdict)
    console.print(table)
    console.print(f"{len(rows)} images scored: {out}/scores.csv, maps/, overlays/", soft_wrap=True)
