"""Judges on disk and on the hub: where they are found and how they are read."""
