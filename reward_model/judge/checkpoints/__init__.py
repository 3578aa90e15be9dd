"""Judges on disk and on the hub: their place, their configuration, and released judges by name."""
