"""kdna recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdna.terminal import Document


def recipe(
    name: Annotated[str, typer.Argument(help="A recipe's name (kdna list recipes), or a YAML file.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a value: optimizer.lr=0.05. Repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="YAML file to write it to, to change and train by.")
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Allow --out to be a file of another recipe, which is then lost."),
    ] = False,
) -> dict[str, Any] | Document:
    """Print a recipe whole, with a comment for every key, and nothing else: a file to copy and change."""
    from kerneldna.files import write_text
    from kerneldna.recipes.commented import commented
    from kerneldna.recipes.recipe import load_recipe

    chosen = load_recipe(name, overrides=set_ or [])
    text = commented(chosen)
    facts = {
        "file": out and str(out),
        "recipe": chosen.name,
        "task": chosen.task,
        "model": chosen.model.name,
        "method": chosen.model.method,
    }
    if out is None:
        return Document(text.rstrip("\n"), facts)
    if not overwrite and out.exists() and out.read_text(encoding="utf-8", errors="replace") != text:
        raise FileExistsError(
            f"'{out}' is there already, and holds something else; give another --out, or --overwrite to lose what it holds"
        )
    write_text(out, text)
    return facts
