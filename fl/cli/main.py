"""The command line: fedpatchcore demo, simulate, deploy, certs, predict, evaluate, audit."""

import json
import logging
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.table import Table

from fl.cli.audit import audit
from fl.cli.data import datasets
from fl.cli.deploy import deployed
from fl.cli.report import report
from fl.cli.sweep import sweep
from fl.cli.terminal import (
    Config,
    Out,
    Resume,
    Sets,
    console,
    errors,
    resolve,
    show_partition,
    show_results,
)
from fl.config.schema import CHECKOUT, ConfigError
from fl.deployment.certificates import make_certificates
from fl.engines.launch import launch
from fl.results.predictions import evaluate_model, find_images, write_predictions
from fl.results.progress import ProgressView
from src.data import open_dataset
from src.errors import UserError
from src.models import PatchCore

SHOWN = 20  # scores that predict prints; scores.csv holds all

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(deployed, name="deploy")
app.add_typer(datasets, name="data")
app.command()(sweep)
app.command()(report)
app.command()(audit)

Engine = Annotated[str | None, typer.Option(help="ray (Flower's simulation engine) or inline")]
Weights = Annotated[Path | None, typer.Option(help="the weights file the model was made with")]
Device = Annotated[str, typer.Option(help="cuda or cpu; by default a GPU where there is one")]


def main() -> None:
    """Run the CLI; what a person can act on is said in a sentence, not in a traceback."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        app()
    except (UserError, OSError) as error:
        errors.print("[bold red]error:[/]", end=" ")
        errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("stopped")
        sys.exit(130)


@app.command()
def demo(out: Out = None, engine: Engine = None, set_: Sets = []) -> None:  # noqa: B006
    """A whole federated round on generated images: nothing to prepare, no network needed."""
    simulate(CHECKOUT / "configs" / "demo.toml", set_, out, engine)


@app.command()
def simulate(
    config: Config = None,
    set_: Sets = [],  # noqa: B006
    out: Out = None,
    engine: Engine = None,
    resume: Resume = None,
) -> None:
    """Run a federation on this machine: fit, merge, broadcast, evaluate, report."""
    settings = resolve(config, set_, out, engine, resume)
    if not settings.data_shared:
        raise ConfigError(
            "data.shared = false: simulated clients share one data root; leave it true"
        )
    show_partition(settings)
    log: list[str] = []
    folder = Path(settings.out)
    with ProgressView(folder, settings.clients):
        launch(settings, log.append)
    show_results(folder)


@app.command()
def certs(
    hosts: Annotated[list[str], typer.Argument(help="names or addresses of the SuperLink")],
    nodes: Annotated[int, typer.Option(min=0, help="how many SuperNodes get a key")] = 2,
    out: Annotated[Path, typer.Option(help="folder; what is there already stays")] = Path("certs"),
) -> None:
    """Make a private certificate authority, the SuperLink's certificate and the nodes' keys."""
    for path in make_certificates(out, hosts, range(nodes)):
        console.print(str(path), soft_wrap=True, highlight=False)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="a model.safetensors")],
    images: Annotated[list[Path], typer.Argument(help="images, or folders of them")],
    out: Annotated[Path, typer.Option(help="folder for maps, overlays and scores.csv")],
    object_: Annotated[str | None, typer.Option("--object", help="whose bank, of several")] = None,
    weights: Weights = None,
    device: Device = "",
) -> None:
    """Score images with a model: anomaly maps, overlays and scores.csv."""
    detector = PatchCore.load(model, bank=object_, **_options(device, weights))
    rows = write_predictions(detector, find_images(images), out)
    table = Table("image", "score", "anomalous", box=None)
    for row in sorted(rows, key=lambda row: -row["score"])[:SHOWN]:
        verdict = {True: "yes", False: "no", None: "-"}[row.get("anomalous")]
        table.add_row(row["image"], f"{row['score']:.3f}", verdict)
    console.print(table)
    console.print(f"{len(rows)} images scored: {out}/scores.csv, maps/, overlays/", soft_wrap=True)


@app.command()
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
    test = open_dataset(kind, data, objects, "test")
    figures = evaluate_model(model, test, _options(device, weights))
    table = Table("", *figures["objects"], "mean", box=None)
    columns = [_named(f) for f in (*figures["objects"].values(), figures["mean"])]
    for key in columns[-1]:
        table.add_row(key, *(f"{column[key]:.4f}" if key in column else "-" for column in columns))
    console.print(table)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=2) + "\n")


def _options(device: str, weights: Path | None) -> dict:
    return {
        "device": device or ("cuda" if torch.cuda.is_available() else "cpu"),
        "weights": weights,
    }


def _named(figures: dict, prefix: str = "") -> dict[str, float]:
    named: dict[str, float] = {}
    for key, value in figures.items():
        named |= _named(value, f"{key}@") if isinstance(value, dict) else {prefix + key: value}
    return named


if __name__ == "__main__":
    main()
