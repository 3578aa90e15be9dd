"""The judge in other people's code."""
