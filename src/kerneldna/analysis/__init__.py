"""Analyses of trained networks: how alike layers are, what children learned, whether gates depend on the image. One file each."""

from kerneldna.analysis.cka import feature_cka, kernel_cka
from kerneldna.analysis.gates import gate_statistics
from kerneldna.analysis.spatial import pairwise_distance, spatial_attentions

__all__ = ["feature_cka", "gate_statistics", "kernel_cka", "pairwise_distance", "spatial_attentions"]
