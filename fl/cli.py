"""The command line: fedpatchcore demo, simulate, deploy, predict, evaluate."""

import json
import logging
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from fl.config import (
    CHECKOUT,
    ConfigError,
    Scalar,
    Settings,
    check_settings,
    default_settings,
    parse_assignments,
    read_config,
)
from fl.launch import RunFailed, deploy, launch
from fl.predict import evaluate_model, find_images, write_predictions
from fl.progress import ProgressView
from fl.setup import open_split, partition_data
from fl.strategy import called
from src.data import DataError, open_dataset
from src.data.partition import partition_table
from src.evaluation.summary import headline, summary_table
from src.models import FileError, PatchCore, WeightsError

CLIENTS = 4  # simulated where clients = 0
SHOWN = 20  # scores that predict prints; scores.csv holds all

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
deployed = typer.Typer(no_args_is_help=True, help="The roles of a deployment, without containers.")
app.add_typer(deployed, name="deploy")
console = Console()
errors = Console(stderr=True)

Sets = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="a setting")]
Out = Annotated[
    Path | None, typer.Option(help="run directory; made anew below outputs/ if left out")
]
Engine = Annotated[str | None, typer.Option(help="ray (Flower's simulation engine) or inline")]
Weights = Annotated[Path | None, typer.Option(help="the weights file the model was made with")]
Device = Annotated[str, typer.Option(help="cuda or cpu; by default a GPU where there is one")]


def main() -> None:
    """Run the CLI; what a person can act on is said in a sentence, not in a traceback."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        app()
    except (ConfigError, DataError, FileError, WeightsError, OSError, RunFailed) as error:
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
    config: Annotated[Path | None, typer.Argument(help="TOML file of settings")] = None,
    set_: Sets = [],  # noqa: B006
    out: Out = None,
    engine: Engine = None,
) -> None:
    """Run a federation on this machine: fit, merge, broadcast, evaluate, report."""
    settings = resolve(config, set_, out, engine)
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


@deployed.command("run")
def deploy_run(
    config: Annotated[Path | None, typer.Argument(help="TOML file of settings")] = None,
    nodes: Annotated[
        int, typer.Option(min=1, help="SuperNodes; as many as --data where given")
    ] = 2,
    data: Annotated[
        list[Path], typer.Option(help="a node's own data root; once for each node")
    ] = [],  # noqa: B006
    set_: Sets = [],  # noqa: B006
    out: Out = None,
) -> None:
    """Start a SuperLink and SuperNodes on this machine, run once, stop them."""
    count = len(data) or nodes
    own = [f"clients={count}", f"data.shared={str(not data).lower()}"]
    settings = resolve(config, [*set_, *own], out, None)
    roots = [Path(_absolute(str(root))) for root in data]
    for root in roots:  # here they can be looked at: no need to start anything to find one wrong
        open_split(settings, str(root))
    if not roots:
        show_partition(settings)
    folder = Path(settings.out)
    log: list[str] = []
    with ProgressView(folder, count):
        deploy(settings, roots, log.append)
    show_results(folder)


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


def resolve(
    config: Path | None, assignments: list[str], out: Path | None, engine: str | None
) -> Settings:
    """Settings of a simulation: defaults, the file's, --set, and the options, in that order.

    Raises:
        ConfigError: settings that cannot be used.
    """
    given: dict[str, Scalar] = default_settings()
    given |= read_config(config) if config else {}
    given |= parse_assignments(assignments)
    for key in ("data.root", "cache.dir", "partition.file", "out"):
        if given[key]:
            given[key] = _absolute(str(given[key]))
    weights = str(given["model.weights"])
    if weights not in ("", "random"):
        given["model.weights"] = _absolute(weights)
    if engine:
        given["engine"] = engine
    if out:
        given["out"] = _absolute(str(out))
    given["out"] = given["out"] or _new_folder(config.stem if config else "run")
    given["clients"] = given["clients"] or CLIENTS
    return check_settings(given)


def show_partition(settings: Settings) -> None:
    """Print who holds which training images; refuse data that cannot be divided so."""
    data = open_split(settings)
    partition = partition_data(settings, data, settings.clients)
    by = partition.column or None
    columns, counts = partition_table(partition, data.train.samples, by)
    title = f"training images by client and {by or 'object'} (partition {partition.kind})"
    table = Table("client", *columns, "all", box=None)
    for client, row in enumerate(counts):
        table.add_row(str(client), *(str(n or "·") for n in row), str(sum(row)))
    console.print(title, highlight=False)  # a table would break it to its own width
    console.print(table)


def show_results(folder: Path) -> None:
    """Print the final table of a run and where its files are."""
    metrics = json.loads((folder / "metrics.json").read_text())
    console.print(summary_table(metrics))
    console.print(headline(metrics), highlight=False)
    for left_out in metrics["refused"]:
        said = f"{called(left_out['client'])} was left out: {left_out['reason']}"
        errors.print(said, style="red", markup=False, highlight=False)
    console.print(f"[bold]{folder / 'report.html'}[/]", soft_wrap=True)


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


def _absolute(path: str) -> str:
    return str(Path(os.path.expanduser(path)).absolute())


def _new_folder(name: str) -> str:
    return str(Path("outputs").absolute() / f"{name}-{datetime.now():%Y%m%d-%H%M%S}")


if __name__ == "__main__":
    main()
