"""Images and their labels, from a file to a batch."""
