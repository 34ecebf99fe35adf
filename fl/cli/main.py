"""The command line: fedpatchcore COMMAND."""

import logging
import sys

import typer
import typer.core

from fl.cli.audit import audit
from fl.cli.certs import certs
from fl.cli.data import datasets
from fl.cli.deploy import deployed
from fl.cli.evaluate import evaluate
from fl.cli.predict import predict
from fl.cli.report import report
from fl.cli.settings import settings
from fl.cli.simulate import demo, simulate
from fl.cli.sweep import sweep
from fl.cli.terminal import errors
from src.errors import UserError

typer.core.HAS_RICH = False  # plain help: importing Rich's doubles the time of --help
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
for command in (demo, simulate, sweep, report, audit, certs, predict, evaluate, settings):
    app.command()(command)
app.add_typer(deployed, name="deploy")
app.add_typer(datasets, name="data")


def main() -> None:
    """Run the CLI. Print failures that the user can act on without a traceback."""
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


if __name__ == "__main__":
    main()
