"""kdna predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def predict(
    run: Annotated[
        Path, typer.Argument(help="A run folder of kdna train whose task is detection, or a model folder.")
    ],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE",
            help="Images, or folders of them: jpg, jpeg, png, ppm, pgm, bmp, tif, tiff, webp; no sub-folders.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the drawn images and predictions.json.")] = Path(
        "predictions"
    ),
    threshold: Annotated[float, typer.Option(help="Show detections with a score above this, 0-1.")] = 0.5,
    model: Annotated[
        Path | None, typer.Option(help="Another model folder, such as a fused one. Default: RUN/model.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: CUDA if there is a GPU.")] = "auto",
    progress: Annotated[bool, typer.Option(help="Show a progress bar for several images.")] = True,
) -> dict[str, Any]:
    """Find objects in images, draw them, and list them in predictions.json.

    Photographs are rotated upright by their EXIF data; boxes are in pixels of the upright image. predictions.json has the
    label, score and box of each object by file name; it is not COCO's results format.
    """
    from kerneldna.detection.prediction import predict
    from kerneldna.training.opened_run import OpenedRun

    if model is not None and model.is_file():
        raise ValueError(f"--model '{model}' is a file; give a model folder, such as kdna fuse writes")
    done = predict(
        OpenedRun(model or run).network(),
        images,
        out,
        threshold=threshold,
        device=device,
        progress=progress,
    )
    return {
        "folder": str(done.folder),
        "images": done.images,
        "unread": list(done.unread),
        "detections": done.detections,
    }
