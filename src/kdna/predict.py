"""kdna predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdna.options import Model, Runtime
from kdna.terminal import say, show_table

SHOWN = 50  # rows of the table


def predict(
    run: Annotated[
        Path,
        typer.Argument(help="A run folder of kdna train, a model folder, or a classifier's exported file."),
    ],
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE",
            help="Images, or folders of them: jpg, jpeg, png, ppm, pgm, bmp, tif, tiff, webp. Of a folder without images of its "
            "own those in its sub-folders.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder for predictions.json and the drawn images, or a classifier's sheet.png."),
    ] = Path("predictions"),
    threshold: Annotated[
        float, typer.Option(help="Of a detector: show detections with a score above this, 0-1.")
    ] = 0.5,
    sheet: Annotated[
        int, typer.Option(min=0, help="Of a classifier: photos on the contact sheet at most; 0 draws none.")
    ] = 60,
    model: Model = None,
    runtime: Runtime = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: CUDA if there is a GPU.")] = "auto",
    progress: Annotated[bool, typer.Option(help="Show a progress bar for several images.")] = True,
) -> dict[str, Any]:
    """Say what is in photos: a classifier's five likeliest classes of each, or the objects that a detector finds.

    A classifier's are printed, listed in predictions.json and drawn on a contact sheet, sheet.png; photos become what the network,
    or the file, says that images became in training. Where each photo lies in a folder called like a class, top1 is the
    share of photos whose likeliest class that is.

    A detector's objects are drawn, and listed with label, score and box by file name; it is not COCO's results format. Boxes
    are in pixels of the upright image. Photographs are rotated upright by their EXIF data.
    """
    import kerneldna as kd
    from kerneldna.deploy.detector_export import is_detector
    from kerneldna.deploy.opened_file import runtime_of
    from kerneldna.detection.prediction import predict as find
    from kerneldna.training.opened_run import OpenedRun
    from kerneldna.training.predict import predict as classify

    path = model or run
    if path.is_file():
        network: Any = kd.load_exported(path, runtime=runtime or runtime_of(path, option="--runtime "))
        if "boxes" in network.facts.get("outputs", ""):
            raise ValueError(
                f"'{path}' holds a detector; kdna predict runs detectors from their run folder or model folder, and kdna eval "
                "--model measures the file"
            )
    else:
        network = OpenedRun(path).network()
    if not path.is_file() and is_detector(network):
        done = find(network, images, out, threshold=threshold, device=device, progress=progress)
        counts = {"images": done.images, "unread": list(done.unread), "detections": done.detections}
        return {"folder": str(done.folder), **counts}
    found = classify(network, images, out, sheet=sheet, device=device, progress=progress)
    _print_table(found.photos)
    known = {} if found.top1 is None else {"top1": round(found.top1, 6)}
    return {"folder": str(found.folder), "images": len(found.photos), "unread": list(found.unread), **known}


def _print_table(photos: Any) -> None:
    """Print the likeliest classes of each photo."""
    heads = ["photo", *(str(place) for place in range(1, 1 + len(photos[0].likely)))]
    several = len({photo.path.parent for photo in photos}) > 1
    rows = [
        [
            "/".join(photo.path.parts[-1 - several :]),
            *(f"{label} {share:.1%}" for label, share in photo.likely),
        ]
        for photo in photos[:SHOWN]
    ]
    show_table(heads, rows, left=heads)
    if len(photos) > SHOWN:
        say(f"... and {len(photos) - SHOWN} more in predictions.json")
