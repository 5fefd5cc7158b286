"""Export runtimes: one file each, found through the registry."""
