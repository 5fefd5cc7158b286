"""Numbers in, pictures out."""
