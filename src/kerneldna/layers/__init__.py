"""Layers that are put into networks: a child and its adapter, gates, and what the methods with kernels for each image share."""
