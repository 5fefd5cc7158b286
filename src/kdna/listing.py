"""kdna list."""

from __future__ import annotations

from typing import Annotated

import typer

from kdna.terminal import Document

KINDS = ("models", "methods", "recipes", "datasets", "runtimes")


def listing(
    kind: Annotated[str, typer.Argument(help=f"One of: {', '.join(KINDS)}.", metavar="[KIND]")] = "recipes",
) -> Document:
    """List the names that the other commands take, one a line."""
    from kerneldna import registry
    from kerneldna.models import list_models
    from kerneldna.recipes.recipe import list_recipes

    if kind not in KINDS:
        raise ValueError(registry.suggest("kind", kind, KINDS))
    lists = {"models": list_models, "recipes": list_recipes}
    names = lists[kind]() if kind in lists else getattr(registry, kind).names()
    return Document("\n".join(names), {kind: list(names)})
