"""The pictures of docs/results.md and docs/analysis.md.

python experiments/figures.py equal_size --size short
python experiments/figures.py inside --plain runs/plain --kerneldna runs/kerneldna --data path/to/cifar10 --out docs/img

equal_size  accuracy against parameters, from the JSON files of the study of that name (experiments/studies.py): equal_size.png
inside      the paper's figures on two finished runs: similarity of layers (Fig. 1 and 6), spatial attentions (Fig. 7), gates by
            class: cka-kernels.png, cka-features.png, spatial.png, spatial-distance.png and gates.png; prints the statistics
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

import torch
from studies import SIZES, recipe_of
from study_results import read
from study_rows import SETS
from tables import TITLES

from kerneldna import checkpoint
from kerneldna.analysis.cka import feature_cka, kernel_cka
from kerneldna.analysis.gates import gate_statistics
from kerneldna.analysis.spatial import pairwise_distance, spatial_attentions
from kerneldna.data.dataset import open_data
from kerneldna.data.loaders import val_loader
from kerneldna.figures.attention_maps import attention_maps
from kerneldna.figures.heatmap import distance_figure, gate_figure, similarity_panels
from kerneldna.figures.pareto import save
from kerneldna.figures.size_curve import Measured, size_curve
from kerneldna.training.run_folder import RunFolder


def main() -> None:
    """Draw what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    ours = commands.add_parser("equal_size", help="accuracy against parameters")
    ours.add_argument("--size", choices=SIZES, required=True, help="of the study")
    ours.add_argument("--dataset", choices=SETS, default=SETS[0], help="what was trained on")
    ours.add_argument(
        "--results", type=Path, default=Path("experiments/results"), help="folder of the JSON files"
    )
    ours.add_argument("--out", type=Path, default=Path("docs/img"), help="folder of the picture")
    ours.set_defaults(draw=equal_size)
    two = commands.add_parser("inside", help="what two networks look like inside")
    two.add_argument("--plain", type=Path, required=True, help="run folder of the plain network")
    two.add_argument("--kerneldna", type=Path, required=True, help="run folder of the KernelDNA network")
    two.add_argument("--data", required=True, help="the images they were trained on")
    two.add_argument("--images", type=int, default=2000, help="validation images to read")
    two.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    two.set_defaults(draw=inside)
    given = parser.parse_args()
    given.draw(given)


def equal_size(given: argparse.Namespace) -> None:
    """Draw every network of the study that has a run: plain ones of several widths as a curve, the others as points."""
    dataset = given.dataset
    rows = read("equal_size", given.size, given.results, datasets=[dataset])
    if not any(row.top1 for row in rows):
        raise SystemExit(
            f"no run of {given.size} size on {dataset} in {given.results}; make some with: "
            f"python experiments/studies.py equal_size:{dataset} --size {given.size}"
        )
    networks = []
    for row in rows:
        series, _, name = row.cell.label.partition(" ")
        if accuracies := [each / 100 for each in row.percent(dataset)]:
            networks.append(Measured(name or series, row.parameters, accuracies, series.rstrip(",")))
    recipe = recipe_of(rows[0].cell, "equal_size", given.size, source=dataset, dataset=dataset, seed=0)
    width = "" if recipe.model.width == 1 else f" of width {recipe.model.width:g}"
    trained = f"{recipe.data.image_size} px, {recipe.schedule.epochs} epochs"
    title = f"ResNet18{width} on {TITLES[dataset]}, {trained}"
    given.out.mkdir(parents=True, exist_ok=True)
    save(size_curve(networks, curve="plain", title=title), given.out / "equal_size.png")


def inside(given: argparse.Namespace) -> None:
    """Draw what two networks look like inside; print the statistics."""
    given.out.mkdir(parents=True, exist_ok=True)
    plain, ours = (checkpoint.load(RunFolder(run).model_dir).eval() for run in (given.plain, given.kerneldna))
    recipe = RunFolder(given.kerneldna).recipe()
    spec = recipe.data.model_copy(
        update={"source": given.data, "limit_val": given.images, "batch_size": 200, "resident": False}
    )
    data = open_data(given.data)
    loader = val_loader(data, recipe.model_copy(update={"data": spec}))

    across = "plain (rows), KernelDNA (columns)"
    kernels = {
        "plain": kernel_cka(plain, unbiased=True),
        "KernelDNA": kernel_cka(ours, unbiased=True),
        across: kernel_cka(plain, ours, unbiased=True),
    }
    features = {
        "plain": feature_cka(plain, loader, progress=True),
        "KernelDNA": feature_cka(ours, loader, progress=True),
        across: feature_cka(plain, loader, ours, progress=True),
    }
    for name, panels in (("kernels", kernels), ("features", features)):
        save(similarity_panels(panels), given.out / f"cka-{name}.png")
        for title, each in panels.items():
            off = [
                v for i, row in enumerate(each.values) for j, v in enumerate(row) if i != j or title == across
            ]
            print(f"CKA of {name}, {title}: mean {mean(off):.3f} off the diagonal")

    families = spatial_attentions(ours)
    # the family with the most children, its parent beside them: how far each is from it
    parent = max(families, key=lambda name: len(families[name]))
    every = {child: s for children in families.values() for child, s in children.items()}
    save(attention_maps({name: s.tolist() for name, s in every.items()}), given.out / "spatial.png")
    family = {f"{parent} (parent)": torch.zeros(3, 3), **families[parent]}
    names, distances = pairwise_distance(family)
    save(distance_figure(names, distances, title=f"Children of {parent}"), given.out / "spatial-distance.png")

    statistics = gate_statistics(ours, loader, classes=data.classes, progress=True)
    for name, each in statistics.items():
        print(f"gate of {name}: {each}")
    widest = max(statistics, key=lambda name: statistics[name].between_classes)
    chosen = statistics[widest]
    figure = gate_figure(chosen.classes, chosen.mean.tolist(), title=f"Gate of {widest}", note=str(chosen))
    save(figure, given.out / "gates.png")


if __name__ == "__main__":
    main()
