"""Numbers in, pictures out. matplotlib is imported by the figures that need it, when they are drawn."""

from kerneldna.figures.attention_maps import attention_maps
from kerneldna.figures.compression_curve import compression_curve
from kerneldna.figures.curves import accuracy_curves, loss_curves
from kerneldna.figures.detections import draw_detections
from kerneldna.figures.diagram import stage_svg
from kerneldna.figures.heatmap import distance_figure, gate_figure, similarity_figure, similarity_panels
from kerneldna.figures.pareto import throughput_figure
from kerneldna.figures.size_curve import size_curve

__all__ = [
    "accuracy_curves",
    "attention_maps",
    "compression_curve",
    "distance_figure",
    "draw_detections",
    "gate_figure",
    "loss_curves",
    "similarity_figure",
    "similarity_panels",
    "size_curve",
    "stage_svg",
    "throughput_figure",
]
