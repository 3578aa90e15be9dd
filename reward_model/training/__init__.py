"""Progressive training of the judge; a recipe is a list of stages."""
