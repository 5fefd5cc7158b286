"""kdna, the command line of kerneldna. One file a command; what a command returns is printed as one last line of JSON.

This package imports the library inside its commands, so that `kdna --help` need not wait for torch.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
        demo,
        evaluate,
        expand,
        export,
        fuse,
        inspect,
        listing,
        predict,
        report,
        table,
        train,
    )

    app = typer.Typer(
        help="CNNs with fewer parameters and smaller files: train, inspect, fuse and export KernelDNA networks.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        epilog="KDNA_TRACEBACK=1 in the environment shows the traceback of an error.",
    )
    commands = {
        "demo": demo.demo,
        "train": train.train,
        "eval": evaluate.evaluate,
        "inspect": inspect.inspect,
        "fuse": fuse.fuse,
        "predict": predict.predict,
        "export": export.export,
        "expand": expand.expand,
        "bench": bench.bench,
        "report": report.report,
        "list": listing.listing,
        "table": table.table,
    }
    for name, command in commands.items():
        app.command(name)(_reported(command))
    app.command("hydrate", hidden=True)(_reported(expand.expand))  # its name before 0.1
    return app


def _reported(command: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """Print what the command returns as one line of JSON, an expected error as one sentence without a traceback."""

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        import typer

        from kdna.wording import Formatter, spoken

        handler = logging.StreamHandler()
        handler.setFormatter(Formatter(command))
        logging.basicConfig(level=logging.WARNING, handlers=[handler])
        logging.getLogger("kerneldna").setLevel(logging.INFO)
        try:
            result = command(**arguments)
        except KeyboardInterrupt as stop:
            _tell("[yellow]stopped[/]", spoken(str(stop), command))
            raise typer.Exit(130) from None
        except (ValueError, OSError, ModuleNotFoundError, RuntimeError) as error:
            if os.environ.get("KDNA_TRACEBACK"):
                raise
            _tell("[bold red]error[/]", spoken(str(error), command))
            raise typer.Exit(1) from None
        print(json.dumps(result))

    return run


def _tell(kind: str, message: str) -> None:
    from rich.console import Console

    console = Console(stderr=True)
    console.print(kind, end=" ")
    console.print(message, markup=False, highlight=False, soft_wrap=True)
