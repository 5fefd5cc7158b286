"""kdna."""
