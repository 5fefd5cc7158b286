"""Methods: one file each, found through the registry."""
