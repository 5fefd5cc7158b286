"""kdna, the command line of kerneldna. One file a command; what a command returns is printed last: one line of JSON, or a text.

This package imports the library inside its commands, so that `kdna --help` need not wait for torch.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typer import Typer


def main() -> None:
    """Run the command line."""
    try:
        import typer  # noqa: F401 - only to say in good time that it is missing
    except ModuleNotFoundError:
        sys.exit("the command line needs typer and rich: pip install 'kerneldna[train]'")
    make_app()()


def make_app() -> Typer:
    """Return the Typer application with every command."""
    import typer

    from kdna import (
        bench,
        compress,
        demo,
        evaluate,
        expand,
        export,
        fuse,
        inspect,
        listing,
        predict,
        recipe,
        report,
        table,
        train,
    )
    from kdna.reporting import Command, Commands, help_of, reported, settings

    app = typer.Typer(
        cls=Commands,
        help="CNNs with fewer parameters and smaller files: train, inspect, fuse and export KernelDNA networks.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    app.callback()(settings)
    commands = {
        "demo": demo.demo,
        "train": train.train,
        "compress": compress.compress,
        "eval": evaluate.evaluate,
        "inspect": inspect.inspect,
        "fuse": fuse.fuse,
        "predict": predict.predict,
        "export": export.export,
        "expand": expand.expand,
        "bench": bench.bench,
        "report": report.report,
        "list": listing.listing,
        "recipe": recipe.recipe,
        "table": table.table,
    }
    for name, command in commands.items():
        app.command(name, cls=Command, help=help_of(command))(reported(command))
    app.command("hydrate", cls=Command, hidden=True)(reported(expand.expand))  # its name before 0.1
    return app
