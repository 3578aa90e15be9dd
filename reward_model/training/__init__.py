"""Progressive training of the judge; a recipe is a mapping of stages."""
