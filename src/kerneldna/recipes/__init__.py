"""Recipes: what a YAML file may say, reading one, and those that come with the library."""
