"""Training by a recipe, and measuring what came out."""
