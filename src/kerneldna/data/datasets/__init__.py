"""Data sets: one file each, found through the registry."""
