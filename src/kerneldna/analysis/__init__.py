"""Analyses of trained networks: how alike layers are, what children learnt, whether gates depend on the image. One file each."""
