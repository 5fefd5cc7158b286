"""Detectors on any network: building, measuring, predicting."""
