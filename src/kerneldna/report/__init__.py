"""Finished runs as one HTML page."""
