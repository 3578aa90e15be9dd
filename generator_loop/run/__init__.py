"""One training run: its parts, how they are built, saved, resumed and launched."""
