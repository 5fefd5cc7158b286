"""Options that several commands take, each worded once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    Path | None,
    typer.Option(
        help="Another model folder, such as a fused one, or an exported file. Default: RUN/model.",
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        help="Runtime for an exported file. Default: by its suffix; a .pt2 file needs torch_export or aot_inductor, and runs "
        "code when it is opened: open only one that you trust.",
    ),
]
AllowNonfinite = Annotated[
    bool,
    typer.Option("--allow-nonfinite", help="Open a network whose weights hold NaN or infinity too."),
]
