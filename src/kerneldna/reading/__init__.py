"""Files that a user hands over, read so that whatever is wrong with them is an error with file, place and remedy."""
