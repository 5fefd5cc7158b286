"""A recipe as YAML with a comment for every key, for people to copy and change; `load_recipe` reads it back."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import yaml
from pydantic import BaseModel

from kerneldna.recipes.specs import Recipe

_WIDTH = 116


def commented(recipe: Recipe) -> str:
    """Return the whole recipe, defaults written out, each key below what it means."""
    return "\n".join(_lines(recipe, "")) + "\n"


def _lines(section: BaseModel, pad: str) -> Iterator[str]:
    values = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        text = field.description or (value.__doc__ if isinstance(value, BaseModel) else "")
        if pad == "" and name != next(iter(values)):
            yield ""
        yield from textwrap.wrap(
            " ".join((text or "").split()), _WIDTH, initial_indent=f"{pad}# ", subsequent_indent=f"{pad}# "
        )
        if isinstance(value, BaseModel):
            yield f"{pad}{name}:"
            yield from _lines(value, f"{pad}  ")
        else:
            # as the one value of a list, which YAML writes on one line
            written = yaml.safe_dump([values[name]], default_flow_style=True, width=10**6, allow_unicode=True)
            yield f"{pad}{name}: {written.strip()[1:-1]}"
